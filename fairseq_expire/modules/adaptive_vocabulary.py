"""Embedding and softmax for large vocabularies: words in bands by frequency, rarer bands narrower.

Weights have the names that fairseq's modules of the same name give them.

Size legend: B rows, T tokens, D width, V words, N vectors.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Clusters:
    """Words in order of frequency: the first band ends before word ``cutoff[0]``, and each is ``factor`` times narrower
    than the one before."""

    cutoff: tuple[int, ...]
    factor: float = 4.0

    def ends(self, symbols: int) -> list[int]:
        """Where the bands of so many words end.

        Raises:
            ValueError: if cutoffs do not rise, or go beyond the words.
        """
        cutoff = list(self.cutoff)
        if not cutoff or cutoff != sorted(set(cutoff)) or cutoff[0] < 4 or cutoff[-1] > symbols:
            raise ValueError(
                f"cutoffs are rising word ranks from 4 (the special symbols) to {symbols} (all words), got {cutoff}"
            )
        return cutoff if cutoff[-1] == symbols else [*cutoff, symbols]

    def width(self, embed_dim: int, band: int) -> int:
        return int(embed_dim // self.factor**band)


class AdaptiveInput(nn.Module):
    """Adaptive input embedding (Baevski & Auli 2018): [B, T] int64 -> [B, T, D].

    Args:
        symbols: V.
        pad: the word whose embedding is zero and stays so, in the first band.
        embed_dim: D.
        bands: the words of each width.
    Raises:
        ValueError: see :meth:`Clusters.ends`.
    """

    def __init__(self, *, symbols: int, pad: int, embed_dim: int, bands: Clusters):
        super().__init__()
        self.ends = bands.ends(symbols)
        self.embeddings = nn.ModuleList()
        for band, (begin, end) in enumerate(zip([0, *self.ends], self.ends)):
            width = bands.width(embed_dim, band)
            embedding = nn.Embedding(end - begin, width, padding_idx=None if band else pad)
            nn.init.normal_(embedding.weight, std=width**-0.5)
            projection = nn.Linear(width, embed_dim, bias=False)
            nn.init.xavier_uniform_(projection.weight)
            self.embeddings.append(nn.Sequential(embedding, projection))
        with torch.no_grad():
            self.embeddings[0][0].weight[pad] = 0
        # In every checkpoint that was made with fairseq's module.
        self.register_buffer("_float_tensor", torch.zeros(1))

    def weights_for_band(self, band: int) -> tuple[nn.Parameter, nn.Parameter]:
        """Embedding [words, width] and projection [D, width]."""
        embedding, projection = self.embeddings[band]
        return embedding.weight, projection.weight

    def forward(self, tokens: Tensor) -> Tensor:
        weight = self.embeddings[0][1].weight
        result = weight.new_zeros(*tokens.shape, weight.size(0))
        # A band without words in this block still is part of the result, so that its weights have a gradient.
        for embed, begin, end in zip(self.embeddings, [0, *self.ends], self.ends):
            mine = (tokens >= begin) & (tokens < end)
            result[mine] = embed(tokens[mine] - begin).to(result.dtype)
        return result


class AdaptiveSoftmax(nn.Module):
    """Adaptive softmax (Grave et al. 2017): the words of the first band and a class for each other band, then the words in it.

    Args:
        symbols: V.
        embed_dim: D.
        bands: the words of each width.
        dropout: on the states, and on what the narrower bands make of them.
        tied: the embedding of the same bands whose words' weights to share; None for weights of its own.
        tie_projections: share its projections too.
    Raises:
        ValueError: see :meth:`Clusters.ends`.
    """

    def __init__(
        self,
        *,
        symbols: int,
        embed_dim: int,
        bands: Clusters,
        dropout: float = 0.0,
        tied: AdaptiveInput | None = None,
        tie_projections: bool = False,
    ):
        super().__init__()
        self.symbols = symbols
        self.cutoff = bands.ends(symbols)
        self.dropout = nn.Dropout(dropout)
        classes = len(self.cutoff) - 1
        self.head = (
            _linear(embed_dim, self.cutoff[0] + classes) if tied is None else _TiedHead(tied, embed_dim, classes)
        )
        self.tail = nn.ModuleList()
        for band, (begin, end) in enumerate(zip(self.cutoff, self.cutoff[1:]), start=1):
            width = bands.width(embed_dim, band)
            if tied is None:
                projection, words = _linear(embed_dim, width), _linear(width, end - begin)
            else:
                embedding, projecting = tied.weights_for_band(band)
                projection = _Tied(projecting, transpose=True) if tie_projections else _linear(embed_dim, width)
                words = _Tied(embedding)
            self.tail.append(nn.Sequential(projection, nn.Dropout(dropout), words))

    def _load_from_state_dict(self, state_dict, prefix, *rest):
        # fairseq's module keeps this integer among its weights, where it is in the way of averages.
        state_dict.pop(f"{prefix}version", None)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(self, states: Tensor, target: Tensor) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """Scores for a loss, of each band only where a target is in it.

        Args:
            states: [B, T, D].
            target: [B, T] or [N] int64.
        Returns:
            the head's scores [N, words and classes], then those of each other band [n, words], None where no target is in it;
            and the targets for each, counted from its first word.
        """
        states, target = self.dropout(states.flatten(0, -2)), target.flatten()
        head_target = target.clone()
        outputs: list[Tensor | None] = [self.head(states)]
        targets: list[Tensor | None] = [head_target]
        for number, (tail, (begin, end)) in enumerate(zip(self.tail, self._spans())):
            rows = ((target >= begin) & (target < end)).nonzero().squeeze(1)
            head_target[rows] = self.cutoff[0] + number
            outputs.append(tail(states[rows]) if len(rows) else None)
            targets.append(target[rows] - begin if len(rows) else None)
        return outputs, targets

    def get_log_prob(self, states: Tensor, target: Tensor | None = None) -> Tensor:
        """[B, T, D] -> [B, T, V] log-probabilities, in float32 or better.

        Args:
            target: [B, T] int64, where only its log-probabilities are needed: those of words in other bands than the target's
                and the first are then 0. None for all.
        """
        flat = states.flatten(0, -2)
        head, first = _log_softmax(self.head(flat)), self.cutoff[0]
        result = head.new_zeros(len(flat), self.symbols)
        result[:, :first] = head[:, :first]
        for number, (tail, (begin, end)) in enumerate(zip(self.tail, self._spans()), start=first):
            rows = slice(None)
            if target is not None:
                rows = ((target >= begin) & (target < end)).flatten().nonzero().squeeze(1)
            result[rows, begin:end] = _log_softmax(tail(flat[rows])) + head[rows, number, None]
        return result.view(*states.shape[:-1], self.symbols)

    def _spans(self) -> Sequence[tuple[int, int]]:
        return list(zip(self.cutoff, self.cutoff[1:]))


class _Tied(nn.Module):
    """A matrix that belongs to another module too."""

    def __init__(self, weight: nn.Parameter, transpose: bool = False):
        super().__init__()
        self.weight = weight
        self.transpose = transpose

    def forward(self, states: Tensor) -> Tensor:
        return F.linear(states, self.weight.t() if self.transpose else self.weight)


class _TiedHead(nn.Module):
    """The words of the first band of an embedding, and the classes."""

    def __init__(self, tied: AdaptiveInput, embed_dim: int, classes: int):
        super().__init__()
        self.word_proj = _Tied(tied.weights_for_band(0)[0])
        self.class_proj = _linear(embed_dim, classes)
        # In every checkpoint that was made with fairseq's module.
        self.register_buffer("_float_tensor", torch.zeros(1))

    def forward(self, states: Tensor) -> Tensor:
        return torch.cat([self.word_proj(states), self.class_proj(states)], dim=-1)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    linear = nn.Linear(inputs, outputs, bias=False)
    nn.init.xavier_uniform_(linear.weight)
    return linear


def _log_softmax(scores: Tensor) -> Tensor:
    return F.log_softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
