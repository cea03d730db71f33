"""An independent reader: a whole row at once in NumPy, every memory kept, no blocks, no deletion.

It knows the weights by name and the equations of the papers, and shares no code with the package.
"""

import heapq

import numpy as np


def masked_softmax(scores, mask):
    """m * softmax(s), renormalised, over the last axis; zeros where nothing is seen."""
    with np.errstate(invalid="ignore"):
        top = np.where(mask > 0, scores, -np.inf).max(-1, keepdims=True)
        weights = mask * np.exp(scores - np.where(np.isfinite(top), top, 0.0))
    total = weights.sum(-1, keepdims=True)
    return np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)


def layer_norm(weights, name, x):
    """Layer norm with the weights of that name."""
    centred = x - x.mean(-1, keepdims=True)
    scale = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return centred / scale * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def feed_forward(weights, x):
    """The two linear layers of a feed-forward network, with a ReLU between them."""
    inner = np.maximum(x @ weights["fc1.weight"].T + weights["fc1.bias"], 0)
    return inner @ weights["fc2.weight"].T + weights["fc2.bias"]


def split_heads(states, heads):
    """[N, D] -> [K, N, D / K]."""
    return states.reshape(len(states), heads, -1).transpose(1, 0, 2)


def read(state, hidden, *, heads, pre_norm, mask_of, compressed_of=None):
    """Reads one row with all layers.

    Args:
        state: the stack's weights by name, as float64 arrays.
        hidden: [N, D], the embedded row.
        heads: K.
        pre_norm: whether layer norm stands before the sublayers.
        mask_of: (layer's weights, states [N, D], distance [N, N]) -> soft mask [N, N], or [K, N, N] for each head.
        compressed_of: (layer's weights, inputs [N, D]) -> compressed memories [G, D], their mask and positions [N, G].
    Returns:
        [N, D].
    """
    layers = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("layers."))
    for number in range(layers):
        prefix = f"layers.{number}."
        weights = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        states = layer_norm(weights, "attention_norm", hidden) if pre_norm else hidden
        memories = None if compressed_of is None else compressed_of(weights, hidden)
        if memories is not None and pre_norm:
            memories = (layer_norm(weights, "attention_norm", memories[0]), *memories[1:])
        attended = attend(weights, state["position"], states, memories, heads=heads, mask_of=mask_of)
        if pre_norm:
            hidden = hidden + attended
            hidden = hidden + feed_forward(weights, layer_norm(weights, "ffn_norm", hidden))
        else:
            hidden = layer_norm(weights, "attention_norm", hidden + attended)
            hidden = layer_norm(weights, "ffn_norm", hidden + feed_forward(weights, hidden))
    return layer_norm(state, "final_norm", hidden) if pre_norm else hidden


def attend(weights, position, states, compressed, *, heads, mask_of):
    """Attention of a row to itself.

    Args:
        weights: of the layer.
        position: [P, D / K], embeddings of the distances 1 ... P.
        states: [N, D].
        compressed: compressed memories [G, D] with their mask and positions [N, G]; or None.
        heads, mask_of: as in :func:`read`.
    Returns:
        [N, D].
    """
    length, width = states.shape
    distance = np.arange(length)[:, None] - np.arange(length)[None, :]
    mask = np.broadcast_to(np.where(distance >= 1, mask_of(weights, states, distance), 0.0), (heads, length, length))
    memories, back = states, distance
    if compressed is not None:
        made, seen, place = compressed
        memories = np.concatenate([states, made])
        mask = np.concatenate([mask, np.broadcast_to(seen, (heads, *seen.shape))], axis=-1)
        back = np.concatenate([distance, place], axis=-1)
    query = split_heads(states @ weights["query_proj.weight"].T, heads)
    key, value = (split_heads(memories @ weights[f"{name}_proj.weight"].T, heads) for name in ("key", "value"))
    by_distance = query @ position.T  # [K, N, P]
    index = np.clip(back - 1, 0, len(position) - 1)
    scored = np.take_along_axis(by_distance, np.broadcast_to(index, (heads, *index.shape)), axis=-1)
    scored = np.where((back >= 1) & (back <= len(position)), scored, 0.0)
    scores = (query @ key.transpose(0, 2, 1) + scored) / np.sqrt(width // heads)
    mixed = masked_softmax(scores, mask) @ value
    return mixed.transpose(1, 0, 2).reshape(length, width) @ weights["out_proj.weight"].T


def within_budget(ends, budget):
    """[N, N] bool: the states that each query sees if a heap holds the older ones, and the first to end is thrown out.

    Args:
        ends: [N], the place at which each state ends.
        budget: number of states that a query sees, the youngest quarter of them whatever their ends.
    """
    length, youngest, heap = len(ends), max(1, budget // 4), []
    seen = np.zeros((length, length), dtype=bool)
    for query in range(length):
        seen[query, max(0, query - youngest) : query] = True
        if query > youngest:
            # Of two that end together, the older one is the smaller.
            heapq.heappush(heap, (ends[query - youngest - 1], query - youngest - 1))
            if len(heap) > budget - youngest:
                heapq.heappop(heap)
        seen[query, [place for _, place in heap]] = True
    return seen


def expire_span_mask(*, max_span, ramp, input_scale=1.0, limit=None, budget=None):
    """Makes the ``mask_of`` of Expire-Span (section 4.1) for :func:`read`."""

    def mask_of(weights, states, distance):
        score = states / input_scale @ weights["policy.predictor.weight"][0] + weights["policy.predictor.bias"][0]
        span = max_span / (1 + np.exp(-score))
        if limit is not None:
            span = np.minimum(span, limit)
        mask = np.clip(1 + (span[None, :] - distance) / ramp, 0, 1)
        return mask if budget is None else mask * within_budget(np.arange(len(span)) + span, budget)

    return mask_of


def fixed_span_mask(*, max_span, limit=None):
    """Makes the ``mask_of`` that shows the last ``max_span`` states, for :func:`read`."""
    span = max_span if limit is None else min(max_span, limit)
    return lambda weights, states, distance: (distance <= span).astype(float)


def adaptive_span_mask(*, max_span, ramp, limit=None):
    """Makes the ``mask_of`` of Adaptive-Span (equation 5) for :func:`read`.

    There the youngest state has distance 0. A limit counts from 1, as all distances do here.
    """

    def mask_of(weights, states, distance):
        span = weights["policy.ratio"][:, None, None] * max_span
        if limit is not None:
            span = np.minimum(span, limit - 1)
        return np.clip((ramp + span - (distance - 1)) / ramp, 0, 1) * (distance <= max_span)

    return mask_of


def compressed(*, max_span, size, rate, pooling, limit=None):
    """Makes the ``compressed_of`` of the Compressive Transformer, token by token, for :func:`read`.

    Before each query, what is beyond the last ``max_span`` tokens has gone into groups of ``rate`` consecutive ones, of
    which the last ``size`` are remembered; the youngest stands in the place behind the tokens. A group whose first
    token is further back than ``limit`` is not seen.
    """

    def compressed_of(weights, hidden):
        length, width = hidden.shape
        groups = -(-length // rate)
        filled = np.concatenate([hidden, np.zeros((groups * rate - length, width))]).reshape(groups, rate, width)
        made = filled.mean(axis=1) if pooling == "mean" else filled.max(axis=1)
        seen, place = np.zeros((length, groups)), np.zeros((length, groups), dtype=int)
        for t in range(length):
            gone = max(0, t - max_span)
            newest = -(-gone // rate) - 1
            for slot in range(min(size, newest + 1)):
                if limit is not None and t - (newest - slot) * rate > limit:
                    continue
                seen[t, newest - slot] = 1
                place[t, newest - slot] = max_span + 1 + slot
        return made, seen, place

    return compressed_of


def in_documents(starts, mask_of, compressed_of=None):
    """Makes ``mask_of`` and ``compressed_of`` for a row of documents, for :func:`read`.

    Args:
        starts: [N] bool, True where a document begins.
        mask_of, compressed_of: of one document.
    """
    document = np.cumsum(starts)

    def masked(weights, states, distance):
        return mask_of(weights, states, distance) * (document[:, None] == document[None, :])

    def compressed_apart(weights, hidden):
        parts = [
            (np.flatnonzero(document == number), *compressed_of(weights, hidden[document == number]))
            for number in np.unique(document)
        ]
        seen = np.zeros((len(hidden), sum(len(made) for _, made, _, _ in parts)))
        place, groups = np.zeros(seen.shape, dtype=int), 0
        for queries, made, own_seen, own_place in parts:
            columns = np.arange(groups, groups + len(made))
            seen[np.ix_(queries, columns)], place[np.ix_(queries, columns)] = own_seen, own_place
            groups += len(made)
        return np.concatenate([made for _, made, _, _ in parts]), seen, place

    return {"mask_of": masked, "compressed_of": None if compressed_of is None else compressed_apart}
