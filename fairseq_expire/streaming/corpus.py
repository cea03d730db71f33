"""A split as inputs and targets: text, whose targets are its next tokens, or a stream with labels.

Size legend: N tokens of the split.
"""

from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from fairseq_expire.streaming.token_stream import TokenStream

# Bits of the flags of a target: it is part of an answer, the first one of it, the last one of it.
IN_ANSWER, FIRST_OF_ANSWER, LAST_OF_ANSWER = 1, 2, 4
# Labels that are counted at once.
CHUNK = 1 << 22


class Stretch(NamedTuple):
    """Consecutive tokens of a split.

    Args:
        inputs: [n] int64.
        targets: [n] int64, the target of each input; padding where none counts.
        answers: [n] uint8, flags of the targets, see ``IN_ANSWER``; None where the split has no answers.
    """

    inputs: np.ndarray
    targets: np.ndarray
    answers: np.ndarray | None


class Corpus(Protocol):
    """A split of N tokens that can be read anywhere."""

    # The first file of the split, for messages.
    name: str
    # Padding of the inputs.
    pad: int
    # Labels that count over tokens; None if every token is a target.
    labels_per_token: float | None

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> Stretch:
        """Reads tokens ``start`` to ``stop``."""
        ...

    def content(self, start: int, stop: int) -> bytes:
        """Returns all that the files hold of tokens ``start`` to ``stop``, for a checksum."""
        ...


class TextCorpus:
    """A text: the input is the target shifted by one, and the very first input is ``</s>``.

    Args:
        stream: the tokens.
        eos: index of ``</s>``.
        answers: [number, 2] int64, the first token of each answer and the one after its last, see
            :func:`read_answers`; None for no answers.
    """

    labels_per_token = None

    def __init__(self, stream: TokenStream, *, eos: int, answers: np.ndarray | None = None):
        self.stream, self.eos, self.answers = stream, eos, answers
        self.name, self.pad = stream.prefixes[0], stream.pad

    def __len__(self) -> int:
        return len(self.stream)

    def read(self, start: int, stop: int) -> Stretch:
        tokens = self.stream.read(max(start - 1, 0), stop)
        if start == 0:
            tokens = np.concatenate([[self.eos], tokens])
        return Stretch(tokens[:-1], tokens[1:], None if self.answers is None else self._flags(start, stop))

    def _flags(self, start: int, stop: int) -> np.ndarray:
        first, end = self.answers[:, 0], self.answers[:, 1]
        flags = np.zeros(stop - start, dtype=np.uint8)
        within = slice(np.searchsorted(end, start, side="right"), np.searchsorted(first, stop))
        for one, other in self.answers[within]:
            flags[max(one - start, 0) : other - start] |= IN_ANSWER
            if one >= start:
                flags[one - start] |= FIRST_OF_ANSWER
            if other <= stop:
                flags[other - 1 - start] |= LAST_OF_ANSWER
        return flags

    def content(self, start: int, stop: int) -> bytes:
        return self.stream.read(start, stop).tobytes()


class LabelledCorpus:
    """Two aligned streams: label t belongs to input t. An answer is a run of neighbouring labels that count.

    Args:
        inputs: the input tokens.
        labels: the labels, with padding where none counts. Nor does ``</s>``, which fairseq-preprocess puts at the end
            of every item.
        eos: index of ``</s>`` in the labels.
    Raises:
        ValueError: if the streams differ in length or in their items, or no label counts.
    """

    def __init__(self, inputs: TokenStream, labels: TokenStream, *, eos: int):
        self.inputs, self.labels, self.eos = inputs, labels, eos
        self.name, self.pad = inputs.prefixes[0], inputs.pad
        if len(inputs) != len(labels):
            raise ValueError(
                f"{inputs.prefixes[0]}.bin has {len(inputs)} tokens and {labels.prefixes[0]}.bin has {len(labels)} "
                "labels: expected a label for each token; prepare them again"
            )
        sizes, label_sizes = inputs.item_sizes(), labels.item_sizes()
        if not np.array_equal(sizes, label_sizes):
            both = min(len(sizes), len(label_sizes))
            item = int(np.argmax(np.append(sizes[:both] != label_sizes[:both], True)))
            raise ValueError(
                f"the items of {inputs.prefixes[0]} and {labels.prefixes[0]} differ, the first time in item {item}: "
                "expected as many labels as tokens in each item; prepare them again"
            )
        if not self.count:
            raise ValueError(f"no label in {labels.prefixes[0]}.bin counts: all of them are <pad> or </s>")

    @cached_property
    def count(self) -> int:
        """Number of labels that count."""
        chunks = ((start, min(start + CHUNK, len(self))) for start in range(0, len(self), CHUNK))
        return sum(np.count_nonzero(self._read_labels(*chunk) != self.pad) for chunk in chunks)

    def _read_labels(self, start: int, stop: int) -> np.ndarray:
        """Reads the labels of tokens ``start`` to ``stop``, [stop - start] int64, padding where none counts."""
        labels = self.labels.read(start, stop)
        labels[labels == self.eos] = self.pad
        return labels

    @property
    def labels_per_token(self) -> float:
        return self.count / len(self)

    def __len__(self) -> int:
        return len(self.inputs)

    def read(self, start: int, stop: int) -> Stretch:
        # One label more on both sides shows where a run of them begins and ends.
        first, end = max(start - 1, 0), min(stop + 1, len(self))
        around = self._read_labels(first, end)
        counts = np.zeros(stop - start + 2, dtype=bool)
        counts[first - start + 1 : end - start + 1] = around != self.pad
        before, counts, after = counts[:-2], counts[1:-1], counts[2:]
        answers = counts * (IN_ANSWER + FIRST_OF_ANSWER * ~before + LAST_OF_ANSWER * ~after)
        return Stretch(self.inputs.read(start, stop), around[start - first : stop - first], answers.astype(np.uint8))

    def content(self, start: int, stop: int) -> bytes:
        return self.inputs.read(start, stop).tobytes() + self.labels.read(start, stop).tobytes()


def read_answers(path: Path, *, tokens: int) -> np.ndarray | None:
    """Reads the answers in a text; None if there is no such file.

    Args:
        path: of an array [number, 2] of whole numbers: the first token of each answer, and the one after its last.
        tokens: N.
    Raises:
        ValueError: if it is no such array, an answer is empty, or answers overlap or are out of order or of the split.
    """
    if not path.exists():
        return None
    try:
        answers = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} is not an array of numpy ({error}): prepare the data again") from None
    if answers.ndim != 2 or answers.shape[1] != 2 or not np.issubdtype(answers.dtype, np.integer):
        raise ValueError(
            f"{path} holds {answers.dtype} {list(answers.shape)}: expected whole numbers [number of answers, 2], the "
            "first token of each answer and the one after its last"
        )
    borders = answers.astype(np.int64).ravel()
    if borders.size and (borders[0] < 0 or borders[-1] > tokens):
        raise ValueError(f"{path}: answers reach from {borders[0]} to {borders[-1]}, and the split has {tokens} tokens")
    steps = np.diff(borders)
    # Inside an answer and from its end to the next one.
    if (steps[::2] < 1).any() or (steps[1::2] < 0).any():
        raise ValueError(f"{path}: answers have to be in order, of at least one token, and must not overlap")
    return borders.reshape(-1, 2)
