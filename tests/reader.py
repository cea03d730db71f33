"""An independent reader: a whole row at once in NumPy, every memory kept, no blocks, no deletion.

It knows the weights by name and the equations of the golden README, and shares no code with the package.
"""

import numpy as np


def softmax_masked(scores, mask):
    """m * softmax(s), renormalised, over the last axis; zeros where nothing is seen."""
    with np.errstate(invalid="ignore"):
        top = np.where(mask > 0, scores, -np.inf).max(-1, keepdims=True)
        weights = mask * np.exp(scores - np.where(np.isfinite(top), top, 0.0))
    total = weights.sum(-1, keepdims=True)
    return np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)


def layer_norm(x, weight, bias):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weight + bias


def read(state, hidden, *, heads, pre_norm, mask_of, compressed_of=None):
    """One row through the stack.

    Args:
        state: the stack's weights by name, as float64 arrays.
        hidden: [N, D], the embedded row.
        heads: K.
        mask_of: (layer's weights, states [N, D], distance [N, N]) -> soft mask [N, N], or [K, N, N] for each head.
        compressed_of: (layer's weights, inputs [N, D]) -> compressed memories [G, D], their mask and positions [N, G].
    Returns:
        [N, D].
    """
    length, width = hidden.shape
    distance = np.arange(length)[:, None] - np.arange(length)[None, :]
    position = state["position"]
    layers = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("layers."))

    def split(states):
        return states.reshape(len(states), heads, -1).transpose(1, 0, 2)

    for number in range(layers):
        weights = {k.split(".", 2)[2]: v for k, v in state.items() if k.startswith(f"layers.{number}.")}

        def norm(name, x):
            return layer_norm(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

        def feed_forward(x):
            inner = np.maximum(x @ weights["fc1.weight"].T + weights["fc1.bias"], 0)
            return inner @ weights["fc2.weight"].T + weights["fc2.bias"]

        states = norm("attention_norm", hidden) if pre_norm else hidden
        mask = np.broadcast_to(
            np.where(distance >= 1, mask_of(weights, states, distance), 0.0), (heads, length, length)
        )
        memories, back = states, distance
        if compressed_of is not None:
            made, seen, place = compressed_of(weights, hidden)
            memories = np.concatenate([states, norm("attention_norm", made) if pre_norm else made])
            mask = np.concatenate([mask, np.broadcast_to(seen, (heads, *seen.shape))], axis=-1)
            back = np.concatenate([distance, place], axis=-1)
        query = split(states @ weights["query_proj.weight"].T)
        key, value = (split(memories @ weights[f"{n}_proj.weight"].T) for n in ("key", "value"))
        by_distance = query @ position.T  # [K, N, P]
        index = np.clip(back - 1, 0, len(position) - 1)
        scored = np.take_along_axis(by_distance, np.broadcast_to(index, (heads, *index.shape)), axis=-1)
        scored = np.where((back >= 1) & (back <= len(position)), scored, 0.0)
        scores = (query @ key.transpose(0, 2, 1) + scored) / np.sqrt(width // heads)
        mixed = softmax_masked(scores, mask) @ value
        attended = mixed.transpose(1, 0, 2).reshape(length, width) @ weights["out_proj.weight"].T
        if pre_norm:
            hidden = hidden + attended
            hidden = hidden + feed_forward(norm("ffn_norm", hidden))
        else:
            hidden = norm("attention_norm", hidden + attended)
            hidden = norm("ffn_norm", hidden + feed_forward(hidden))
    if pre_norm:
        hidden = layer_norm(hidden, state["final_norm.weight"], state["final_norm.bias"])
    return hidden


def expire_span_mask(*, max_span, ramp, input_scale=1.0, limit=None):
    """The soft mask of section 4.1, for :func:`read`."""

    def mask_of(weights, states, distance):
        score = states / input_scale @ weights["policy.predictor.weight"][0] + weights["policy.predictor.bias"][0]
        span = max_span / (1 + np.exp(-score))
        if limit is not None:
            span = np.minimum(span, limit)
        return np.clip(1 + (span[None, :] - distance) / ramp, 0, 1)

    return mask_of


def fixed_span_mask(*, max_span, limit=None):
    """The last ``max_span`` states, for :func:`read`."""
    longest = max_span if limit is None else min(max_span, limit)
    return lambda weights, states, distance: (distance <= longest).astype(float)


def adaptive_span_mask(*, max_span, ramp, limit=None):
    """Equation 5 of Adaptive-Span, the youngest at 0, for :func:`read`; a limit counts from 1 as all distances do."""

    def mask_of(weights, states, distance):
        span = weights["policy.ratio"][:, None, None] * max_span
        if limit is not None:
            span = np.minimum(span, limit - 1)
        return np.clip((ramp + span - (distance - 1)) / ramp, 0, 1) * (distance <= max_span)

    return mask_of


def compressed(*, max_span, size, rate, pooling, limit=None):
    """The memory of the Compressive Transformer, token by token, for :func:`read`.

    Before each query, what is beyond the last ``max_span`` tokens has gone into groups of ``rate`` consecutive ones, of which
    the last ``size`` are remembered; the youngest stands in the place behind the tokens. A group whose first token is further
    back than ``limit`` is not seen.
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
