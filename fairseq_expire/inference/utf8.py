"""Masks of the tokens with which the output of a byte model stays valid UTF-8.

Size legend: N rows, t tokens, V symbols, S states.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fairseq_expire.tokenizers.bytes_and_chars import byte_of
from fairseq_expire.tokenizers.dictionary import SPECIAL_SYMBOLS

# The states between characters, and after bytes that are not UTF-8.
BOUNDARY, INVALID = 0, 8
CONTINUATION = (0x80, 0xBF)
# Ranges of bytes that lead from each state to another (The Unicode Standard, table 3-7). States 1, 2 and 5 wait for
# one, two and three continuation bytes. States 3, 4, 6 and 7 follow E0, ED, F0 and F4, after which the next byte has a
# smaller range.
TRANSITIONS: dict[int, Sequence[tuple[int, int, int]]] = {
    BOUNDARY: (
        (0x00, 0x7F, BOUNDARY),
        (0xC2, 0xDF, 1),
        (0xE0, 0xE0, 3),
        (0xE1, 0xEC, 2),
        (0xED, 0xED, 4),
        (0xEE, 0xEF, 2),
        (0xF0, 0xF0, 6),
        (0xF1, 0xF3, 5),
        (0xF4, 0xF4, 7),
    ),
    1: ((*CONTINUATION, BOUNDARY),),
    2: ((*CONTINUATION, 1),),
    3: ((0xA0, 0xBF, 1),),
    4: ((0x80, 0x9F, 1),),
    5: ((*CONTINUATION, 2),),
    6: ((0x90, 0xBF, 2),),
    7: ((0x80, 0x8F, 2),),
}
# The longest character has so many bytes.
MAX_CHAR_BYTES = 4


class Utf8Mask:
    """Masks of the tokens that may come next, given the tokens so far and a limit on those to come.

    A character is begun only if the dictionary has bytes that complete it within the limit. Special symbols come
    between characters only. Bytes that are not UTF-8 in the tokens so far count as ended, as for Python's decoder.

    Args:
        symbols: names of the symbols of a byte model, in the order of their ids.
    Raises:
        ValueError: if a symbol that is not special is not the name of a byte.
    """

    def __init__(self, symbols: Sequence[str]):
        byte_values = [None if number < len(SPECIAL_SYMBOLS) else byte_of(name) for number, name in enumerate(symbols)]
        following = _byte_table()
        table = torch.full((INVALID + 1, len(symbols)), INVALID)
        for number, byte in enumerate(byte_values):
            table[:, number] = following[:, byte] if byte is not None else INVALID
        table[BOUNDARY, : len(SPECIAL_SYMBOLS)] = BOUNDARY
        # [S, V], the state after a symbol; a symbol that cannot follow starts anew from the boundary.
        restarted = torch.where(table[BOUNDARY] == INVALID, BOUNDARY, table[BOUNDARY])
        self._resumed = torch.where(table == INVALID, restarted, table)
        # [S], fewest symbols that lead to the boundary; and [S, V], the same with a given symbol as the first.
        self._needed = _steps_to_boundary(table)
        self._needed_with = 1 + self._needed[table]

    def states(self, tokens: Tensor) -> Tensor:
        """[N, t] int64 -> [N] int64, the state of each row; t may be 0."""
        resumed = self._resumed.to(tokens.device)
        state = torch.full((len(tokens),), BOUNDARY, device=tokens.device)
        # An incomplete character has at most three bytes.
        for column in tokens[:, 1 - MAX_CHAR_BYTES :].unbind(dim=1):
            state = resumed[state, column]
        return state

    def needed(self, tokens: Tensor) -> Tensor:
        """[N, t] int64 -> [N] int64, the fewest symbols that complete the last character of each row."""
        return self._needed.to(tokens.device)[self.states(tokens)]

    def __call__(self, tokens: Tensor, remaining: int) -> Tensor:
        """Computes the mask of the next token.

        Args:
            tokens: [N, t] int64, the tokens so far.
            remaining: number of tokens that may still come, the next one included.
        Returns:
            [N, V] bool, True for the symbols that may come next.
        Raises:
            ValueError: if a row ends in a character that so few tokens cannot complete.
        """
        allowed = self._needed_with.to(tokens.device)[self.states(tokens)] <= remaining
        if not bool(allowed.any(dim=1).all()):
            raise ValueError(
                f"the text ends in the middle of a character, which {remaining} more tokens of this dictionary cannot "
                "complete"
            )
        return allowed


def _byte_table() -> Tensor:
    """Returns the state after each byte, [S, 256]."""
    table = torch.full((INVALID + 1, 256), INVALID)
    for state, ranges in TRANSITIONS.items():
        for first, last, then in ranges:
            table[state, first : last + 1] = then
    return table


def _steps_to_boundary(table: Tensor) -> Tensor:
    """[S, V] states after symbols -> [S], the fewest symbols that lead from each state to the boundary."""
    steps: list[int] = [1 << 30] * (INVALID + 1)
    steps[BOUNDARY] = 0
    for _ in range(MAX_CHAR_BYTES - 1):
        for state in range(1, INVALID):
            steps[state] = min(steps[state], 1 + min(steps[then] for then in table[state].tolist()))
    return torch.tensor(steps)
