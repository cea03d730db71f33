"""What a text costs under a model."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fairseq_expire.tokenizers.bound import BoundTokenizer


class ScoredToken(NamedTuple):
    """A token: its symbol in the dictionary, the text that is complete with it, and what it costs in bits."""

    symbol: str
    text: str
    bits: float


@dataclass(frozen=True, eq=False)
class Score:
    """The negative logarithms, to base 2, of the probabilities that a model gives the tokens of a text.

    Args:
        codec: that made the tokens.
        ids: [N], the tokens.
        token_bits: [N] float64.
    """

    codec: BoundTokenizer
    ids: np.ndarray
    token_bits: np.ndarray

    @property
    def bits(self) -> float:
        """Of all tokens together."""
        return float(self.token_bits.sum())

    @property
    def bits_per_token(self) -> float:
        """Their mean."""
        return self.bits / len(self.ids)

    @property
    def tokens(self) -> list[ScoredToken]:
        """Each token. Their texts together are the whole, but for unknown symbols; a character of several bytes comes with the last of them."""
        decoder = self.codec.stream_decoder()
        return [
            ScoredToken(self.codec.symbols[index], decoder.feed(index), bits)
            for index, bits in zip(self.ids.tolist(), self.token_bits.tolist())
        ]

    def __repr__(self) -> str:
        return f"Score({len(self.ids)} tokens, {self.bits:.1f} bits, {self.bits_per_token:.4f} bits per token)"
