"""Embedding and softmax for large vocabularies: clusters of words by frequency, with narrower vectors for rarer words.

Weights have the names that fairseq's modules of the same names give them.

Size legend: B rows, T tokens, D width, V words, N vectors.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Clusters:
    """The clusters of a vocabulary whose words are sorted by frequency.

    Args:
        cutoffs: the ranks at which clusters end: the first holds the words below ``cutoffs[0]``. The last cluster ends
            with the vocabulary and need not be named.
        factor: how many times narrower the vectors of each cluster are than those of the one before.
    """

    cutoffs: tuple[int, ...]
    factor: float = 4.0

    def ends(self, vocab_size: int) -> list[int]:
        """Returns where each cluster ends in a vocabulary of this size.

        Raises:
            ValueError: if cutoffs do not rise, or go beyond the vocabulary.
        """
        cutoffs = list(self.cutoffs)
        if not cutoffs or cutoffs != sorted(set(cutoffs)) or cutoffs[0] < 4 or cutoffs[-1] > vocab_size:
            raise ValueError(
                f"cutoffs are rising word ranks from 4 (the special symbols) to {vocab_size} (all words), got {cutoffs}"
            )
        return cutoffs if cutoffs[-1] == vocab_size else [*cutoffs, vocab_size]

    def width(self, embed_dim: int, cluster: int) -> int:
        """Returns the width of the vectors of a cluster; the first, number 0, has ``embed_dim``."""
        return int(embed_dim // self.factor**cluster)


class ClusterWeights(NamedTuple):
    """Weights of a cluster of an adaptive input embedding.

    Args:
        embedding: [words, width].
        projection: [D, width].
    """

    embedding: Tensor
    projection: Tensor


class ClusterScores(NamedTuple):
    """Scores of an adaptive softmax that a loss needs: those of the head, then those of each tail.

    Args:
        scores: [N, words and classes] of the head, then [n, words] of each tail; None where no target is in it.
        targets: the targets of each [N] or [n] int64, counted from its first word; None where no target is in it.
    """

    scores: list[Tensor | None]
    targets: list[Tensor | None]


class AdaptiveInput(nn.Module):
    """Adaptive input embedding (Baevski & Auli 2018): [B, T] int64 -> [B, T, D].

    Args:
        vocab_size: V.
        pad: the word whose embedding is zero and stays so; it is in the first cluster.
        embed_dim: D.
        clusters: the words of each width.
    Raises:
        ValueError: if the cutoffs do not fit the vocabulary.
    """

    def __init__(self, *, vocab_size: int, pad: int, embed_dim: int, clusters: Clusters):
        super().__init__()
        self.ranges = list(pairwise([0, *clusters.ends(vocab_size)]))
        self.embeddings = nn.ModuleList()
        for cluster, (begin, end) in enumerate(self.ranges):
            width = clusters.width(embed_dim, cluster)
            embedding = nn.Embedding(end - begin, width, padding_idx=None if cluster else pad)
            nn.init.normal_(embedding.weight, std=width**-0.5)
            if cluster == 0:
                nn.init.zeros_(embedding.weight[pad])
            projection = nn.Linear(width, embed_dim, bias=False)
            nn.init.xavier_uniform_(projection.weight)
            self.embeddings.append(nn.Sequential(embedding, projection))
        # fairseq's module has this buffer, so checkpoints have it.
        self.register_buffer("_float_tensor", torch.zeros(1))

    def weights(self, cluster: int) -> ClusterWeights:
        """Returns the weights of a cluster."""
        embedding, projection = self.embeddings[cluster].children()
        assert isinstance(embedding, nn.Embedding)
        assert isinstance(projection, nn.Linear)
        return ClusterWeights(embedding.weight, projection.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        weight = self.weights(0).projection
        result = weight.new_zeros(*tokens.shape, weight.size(0))
        # A cluster without words in this block takes part as well, so that its weights get a gradient.
        for embed, (begin, end) in zip(self.embeddings, self.ranges):
            inside = (tokens >= begin) & (tokens < end)
            result[inside] = embed(tokens[inside] - begin).to(result.dtype)
        return result


class AdaptiveSoftmax(nn.Module):
    """Adaptive softmax (Grave et al. 2017): the words of the first cluster and one class for each other cluster, then
    its words.

    Args:
        vocab_size: V.
        embed_dim: D.
        clusters: the words of each width.
        dropout: on the states, and on their projections to narrower clusters.
        tied: the embedding of the same clusters whose word vectors to share; None for weights of its own.
        tie_projections: share the projections of ``tied`` too.
    Raises:
        ValueError: if the cutoffs do not fit the vocabulary.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        embed_dim: int,
        clusters: Clusters,
        dropout: float = 0.0,
        tied: AdaptiveInput | None = None,
        tie_projections: bool = False,
    ):
        super().__init__()
        self.vocab_size = vocab_size
        ends = clusters.ends(vocab_size)
        # How many words the head scores, and the ranges of ranks that the tails score.
        self.head_size, self.tail_ranges = ends[0], list(pairwise(ends))
        self.dropout = nn.Dropout(dropout)
        classes = len(self.tail_ranges)
        self.head = (
            _linear(embed_dim, self.head_size + classes) if tied is None else _TiedHead(tied, embed_dim, classes)
        )
        self.tail = nn.ModuleList()
        for cluster, (begin, end) in enumerate(self.tail_ranges, start=1):
            width = clusters.width(embed_dim, cluster)
            projection: nn.Module
            words: nn.Module
            if tied is None:
                projection, words = _linear(embed_dim, width), _linear(width, end - begin)
            else:
                embedding, shared = tied.weights(cluster)
                projection = _Tied(shared, transpose=True) if tie_projections else _linear(embed_dim, width)
                words = _Tied(embedding)
            self.tail.append(nn.Sequential(projection, nn.Dropout(dropout), words))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # fairseq's module keeps this integer among its weights, where code that averages weights stumbles over it.
        state_dict.pop(f"{prefix}version", None)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(self, states: Tensor, target: Tensor) -> ClusterScores:
        """Computes the scores that a loss needs, of a cluster only where a target is in it.

        Args:
            states: [B, T, D].
            target: [B, T] or [N] int64.
        """
        states, target = self.dropout(states.flatten(0, -2)), target.flatten()
        head_target = target.clone()
        outputs: list[Tensor | None] = [self.head(states)]
        targets: list[Tensor | None] = [head_target]
        for number, (tail, (begin, end)) in enumerate(zip(self.tail, self.tail_ranges), start=self.head_size):
            rows = ((target >= begin) & (target < end)).nonzero().squeeze(1)
            head_target[rows] = number
            outputs.append(tail(states[rows]) if len(rows) else None)
            targets.append(target[rows] - begin if len(rows) else None)
        return ClusterScores(outputs, targets)

    def get_log_prob(self, states: Tensor, target: Tensor | None = None) -> Tensor:
        """Returns log-probabilities [B, T, V] in float32 or better.

        Args:
            states: [B, T, D].
            target: [B, T] int64, where only its log-probabilities are needed: those of words outside of the target's
                cluster and the first are then 0. None for all.
        """
        flat = states.flatten(0, -2)
        head = _log_softmax(self.head(flat))
        result = head.new_zeros(len(flat), self.vocab_size)
        result[:, : self.head_size] = head[:, : self.head_size]
        for number, (tail, (begin, end)) in enumerate(zip(self.tail, self.tail_ranges), start=self.head_size):
            rows: slice | Tensor = slice(None)
            if target is not None:
                rows = ((target >= begin) & (target < end)).flatten().nonzero().squeeze(1)
            result[rows, begin:end] = _log_softmax(tail(flat[rows])) + head[rows, number, None]
        return result.view(*states.shape[:-1], self.vocab_size)


class _Tied(nn.Module):
    """A matrix that belongs to another module too."""

    def __init__(self, weight: Tensor, transpose: bool = False):
        super().__init__()
        self.weight = weight
        self.transpose = transpose

    def forward(self, states: Tensor) -> Tensor:
        return F.linear(states, self.weight.t() if self.transpose else self.weight)


class _TiedHead(nn.Module):
    """The words of the first cluster of an embedding, and the classes."""

    def __init__(self, tied: AdaptiveInput, embed_dim: int, classes: int):
        super().__init__()
        self.word_proj = _Tied(tied.weights(0).embedding)
        self.class_proj = _linear(embed_dim, classes)
        # fairseq's module has this buffer, so checkpoints have it.
        self.register_buffer("_float_tensor", torch.zeros(1))

    def forward(self, states: Tensor) -> Tensor:
        return torch.cat([self.word_proj(states), self.class_proj(states)], dim=-1)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    linear = nn.Linear(inputs, outputs, bias=False)
    nn.init.xavier_uniform_(linear.weight)
    return linear


def _log_softmax(scores: Tensor) -> Tensor:
    return F.log_softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
