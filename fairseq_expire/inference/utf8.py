"""Which symbols may come next so that what a byte model writes is UTF-8.

Size legend: N rows, t tokens, V symbols, S states.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fairseq_expire.tokenizers.bytes_and_chars import byte_of
from fairseq_expire.tokenizers.dictionary import SPECIAL_SYMBOLS

# Between characters, and where no valid text can be.
BOUNDARY, INVALID = 0, 8
CONTINUATION = (0x80, 0xBF)
# Which bytes lead from a state to which (The Unicode Standard, table 3-7): 1, 2 and 5 wait for one to three more bytes of any
# kind; 3, 4, 6 and 7 are after E0, ED, F0 and F4, which not every byte may follow.
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
# A character has at most this many bytes before its last one.
LOOK_BACK = 3


class Utf8Mask:
    """Masks of the symbols that may come next, from the tokens so far and how many may still come.

    A character is only begun if the dictionary has bytes that complete it and there is room for them. Special symbols come
    between characters only. What is not valid in the tokens so far counts as ended, as for Python's decoder.

    Args:
        symbols: of a byte model, in the order of their ids.
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
        # [S, V], the state after a symbol.
        self._following = table
        # The same where the text goes on after what is not valid: that has ended, and the symbol is the first after it.
        restarted = torch.where(table[BOUNDARY] == INVALID, BOUNDARY, table[BOUNDARY])
        self._resumed = torch.where(table == INVALID, restarted, table)
        # [S, V], how many symbols at least it takes, with that one, to be between characters again.
        needed = _steps_to_boundary(table)
        self._needed = 1 + needed[table]
        self._needed_in = needed

    def states(self, tokens: Tensor) -> Tensor:
        """[N, t] int64 -> [N] int64, the state that each row is in; rows may be empty."""
        resumed = self._resumed.to(tokens.device)
        state = torch.full((len(tokens),), BOUNDARY, device=tokens.device)
        for column in tokens[:, -LOOK_BACK:].unbind(dim=1):
            state = resumed[state, column]
        return state

    def needed(self, tokens: Tensor) -> Tensor:
        """[N, t] int64 -> [N] int64, how many symbols at least it takes to complete each row's last character."""
        return self._needed_in.to(tokens.device)[self.states(tokens)]

    def __call__(self, tokens: Tensor, left: int) -> Tensor:
        """What may come next.

        Args:
            tokens: [N, t] int64, so far.
            left: how many tokens may still come, the next one included.
        Returns:
            [N, V] bool.
        Raises:
            ValueError: if a row ends in a character that cannot be completed with so many.
        """
        allowed = self._needed.to(tokens.device)[self.states(tokens)] <= left
        if not bool(allowed.any(dim=1).all()):
            raise ValueError(
                f"the text ends in the middle of a character, which {left} more tokens of this dictionary cannot complete"
            )
        return allowed


def _byte_table() -> Tensor:
    """[S, 256], the state after each byte."""
    table = torch.full((INVALID + 1, 256), INVALID)
    for state, ranges in TRANSITIONS.items():
        for first, last, then in ranges:
            table[state, first : last + 1] = then
    return table


def _steps_to_boundary(table: Tensor) -> Tensor:
    """[S, V] states after symbols -> [S], how many symbols at least lead from each state to the boundary."""
    steps: list[int] = [1 << 30] * (INVALID + 1)
    steps[BOUNDARY] = 0
    for _ in range(LOOK_BACK):
        for state in range(1, INVALID):
            steps[state] = min(steps[state], 1 + min(steps[then] for then in table[state].tolist()))
    return torch.tensor(steps)
