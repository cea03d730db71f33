"""The score of a text: its cost in bits, as a whole and token by token."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fairseq_expire.tokenizers.bound import BoundTokenizer


class ScoredToken(NamedTuple):
    """A token of a scored text.

    Args:
        symbol: its name in the dictionary.
        text: the text that is complete with this token; empty while a character lacks bytes.
        bits: its cost.
    """

    symbol: str
    text: str
    bits: float


@dataclass(frozen=True, eq=False)
class Score:
    """Costs of the tokens of a text: negative base-2 logarithms of the probabilities that a model gives them.

    Args:
        tokenizer: the tokenizer of the model.
        ids: [N] int64, the tokens.
        token_bits: [N] float64, the cost of each token.
    """

    tokenizer: BoundTokenizer
    ids: np.ndarray
    token_bits: np.ndarray

    @property
    def bits(self) -> float:
        """Total cost of the text."""
        return float(self.token_bits.sum())

    @property
    def bits_per_token(self) -> float:
        """Mean cost of a token."""
        return self.bits / len(self.ids)

    @property
    def tokens(self) -> list[ScoredToken]:
        """The tokens with their texts and costs.

        The texts joined are the text that was scored, except for unknown symbols. A character of several bytes is the
        text of its last byte.
        """
        decoder = self.tokenizer.stream_decoder()
        return [
            ScoredToken(self.tokenizer.symbols[index], decoder.feed(index), bits)
            for index, bits in zip(self.ids.tolist(), self.token_bits.tolist())
        ]

    def __repr__(self) -> str:
        return f"Score({len(self.ids)} tokens, {self.bits:.1f} bits, {self.bits_per_token:.4f} bits per token)"
