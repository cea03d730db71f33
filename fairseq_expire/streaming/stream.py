"""A corpus as contiguous rows read block by block, over fairseq's mmap format.

Size legend: N tokens in the split, G rows over all processes and micro-batches, B rows of one batch, T tokens of a block.
"""

import functools
import logging
import mmap
import os
import struct
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
import torch

from fairseq_expire import requires_fairseq  # noqa: F401

# isort: split
from fairseq.data import FairseqDataset
from fairseq.data.indexed_dataset import MMapIndexedDataset, _code_to_dtype, data_file_path, index_file_path

from fairseq_expire.tokenizers.dictionary import SPECIAL_SYMBOLS

logger = logging.getLogger(__name__)

# Every block is checked when it is read; so many tokens at the start also when the corpus is opened, in such pieces.
CHECKED_TOKENS = 1 << 26
CHUNK = 1 << 20
# Its place in every dictionary of fairseq.
UNK = SPECIAL_SYMBOLS.index("<unk>")
# Of an index, after its first letters: version, code of the tokens' type, number of items.
HEADER = struct.Struct("<QBQ")


class TokenStream:
    """The tokens of one split as a single sequence, read from disk where and when they are asked for.

    The items of an mmap dataset lie one after the other in its ``.bin``, so item borders need no handling.

    Args:
        prefixes: paths without ``.bin``/``.idx`` of the parts, in order.
        num_symbols: size of the dictionary.
        pad, unk: its symbols for padding and for what is unknown. The first, which is a word `<pad>` in the text that
            fairseq-preprocess had, is read as the second: fairseq leaves padding out of every loss.
        warned: the log says already that there is padding in this split.
    Raises:
        FileNotFoundError: if a part is missing.
        ValueError: if a part is not of the mmap format, is cut short, or the split holds no token.
    """

    def __init__(self, prefixes: Sequence[str], *, num_symbols: int, pad: int, unk: int = UNK, warned: bool = False):
        self.prefixes = list(prefixes)
        self.num_symbols = num_symbols
        self.pad, self.unk = pad, unk
        # One byte that this process shares with the workers that are forked from it, so that only one of them warns.
        self._warned = mmap.mmap(-1, 1)
        self._warned[0] = warned
        self._parts: list[np.ndarray] = [_open_part(prefix) for prefix in self.prefixes]
        self._ends = np.cumsum([len(part) for part in self._parts])
        if len(self) == 0:
            raise ValueError(f"{self.prefixes[0]}.bin holds no token: there is nothing to train on or to score")
        # What is wrong is said before the work starts, where looking at everything takes no time to speak of.
        for start in range(0, min(len(self), CHECKED_TOKENS), CHUNK):
            self.read(start, min(start + CHUNK, CHECKED_TOKENS, len(self)))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __reduce__(self):
        # A data-loading worker opens the files again: pickling a memmap would copy the corpus.
        options = {"num_symbols": self.num_symbols, "pad": self.pad, "unk": self.unk, "warned": bool(self._warned[0])}
        return functools.partial(TokenStream, **options), (self.prefixes,)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens ``start`` to ``stop`` as int64, none of them padding.

        Raises:
            ValueError: if a token is outside the dictionary.
        """
        first = int(np.searchsorted(self._ends, start, side="right"))
        pieces = []
        position = start
        while position < stop:
            begin = int(self._ends[first - 1]) if first else 0
            end = min(stop, int(self._ends[first]))
            pieces.append(self._parts[first][position - begin : end - begin].astype(np.int64))
            position, first = end, first + 1
        tokens = np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int64)
        if tokens.size and (tokens.max() >= self.num_symbols or tokens.min() < 0):
            wrong = int(np.argmax((tokens >= self.num_symbols) | (tokens < 0)))
            raise ValueError(
                f"token {start + wrong} of {self.prefixes[0]}.bin is {tokens[wrong]}, but dict.txt has only "
                f"{self.num_symbols} symbols: the data was made with another dictionary; prepare it again"
            )
        padding = tokens == self.pad
        if padding.any():
            if not self._warned[0]:
                self._warned[0] = True
                logger.warning(
                    "token %d of %s.bin is the padding symbol (a literal '<pad>' in the text), which fairseq leaves out of "
                    "every loss: all that there are of it are read as '<unk>'",
                    start + int(np.argmax(padding)),
                    self.prefixes[0],
                )
            tokens[padding] = self.unk
        return tokens


def find_parts(folder: str, split: str, combine: bool) -> list[str]:
    """The prefixes of a split, ``train``, and with ``combine`` also ``train1``, ``train2``... as fairseq names parts.

    Raises:
        FileNotFoundError: if the split is not there.
    """
    prefix = os.path.join(folder, split)
    if not MMapIndexedDataset.exists(prefix):
        names = set(os.listdir(folder))
        found = sorted(name[:-4] for name in names if name.endswith(".idx") and f"{name[:-4]}.bin" in names)
        raise FileNotFoundError(
            f"no split '{split}' in {folder}: expected {split}.bin and {split}.idx, found splits: "
            f"{', '.join(found) or 'none'}; prepare it with data_prep/text.py or fairseq-preprocess"
        )
    parts = [prefix]
    while combine and MMapIndexedDataset.exists(f"{prefix}{len(parts)}"):
        parts.append(f"{prefix}{len(parts)}")
    return parts


def _open_part(prefix: str) -> np.ndarray:
    index_path, data_path = index_file_path(prefix), data_file_path(prefix)
    for path in (index_path, data_path):
        if not os.path.exists(path):
            raise FileNotFoundError(f"{path} is missing: prepare the data again")
    magic = MMapIndexedDataset.Index._HDR_MAGIC
    with open(index_path, "rb") as file:
        header = file.read(len(magic) + HEADER.size)
        if not header.startswith(magic):
            raise ValueError(
                f"{index_path} is not an index of fairseq's mmap format: prepare the data with data_prep/text.py, or "
                "with fairseq-preprocess and its default --dataset-impl"
            )
    # What fairseq's index could not be closed after.
    version, dtype, _ = (
        HEADER.unpack(header[len(magic) :]) if len(header) == len(magic) + HEADER.size else (None, None, 0)
    )
    if version != 1 or dtype not in _code_to_dtype:
        raise ValueError(f"{index_path} is cut short or damaged at its beginning: prepare the data again")
    try:
        index = MMapIndexedDataset.Index(index_path)
    except ValueError as error:
        raise ValueError(f"{index_path} is cut short ({error}): prepare the data again") from error
    tokens = int(index.sizes.sum(dtype=np.int64))
    expected, actual = tokens * np.dtype(index.dtype).itemsize, os.path.getsize(data_path)
    if expected != actual:
        raise ValueError(
            f"{data_path} has {actual} bytes where its index says {expected}: it is damaged or of another corpus; "
            "prepare it again"
        )
    if tokens == 0:
        return np.zeros(0, dtype=index.dtype)
    return np.memmap(data_path, dtype=index.dtype, mode="r", shape=(tokens,))


class StreamDataset(FairseqDataset):
    """One split, as fairseq's tools hold it; :meth:`blocks` gives what is really read.

    Args:
        stream: the tokens.
        split: its name.
        training: whether a trainer reads it for training (the rows of ``--update-freq`` then count).
    """

    def __init__(self, stream: TokenStream, *, split: str, training: bool):
        super().__init__()
        self.stream = stream
        self.split = split
        self.training = training

    def __len__(self) -> int:
        return len(self.stream)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.stream.read(index, index + 1))


# Tokens ``start`` to ``stop`` of a corpus.
Interval = tuple[int, int]


class BlockDataset(torch.utils.data.Dataset):
    """Batches of one process: item ``step * micro_batches + micro_batch`` is block ``step`` of the rows of ``micro_batch``.

    The text is cut into G = rows * micro_batches * num_shards contiguous rows whose lengths differ by at most one. A batch
    holds ``rows`` of them; a process has ``micro_batches`` such groups of rows, read in turns. The input is the target shifted by one,
    across block and row borders, and the very first input is ``</s>``: every token is a target exactly once.

    The text is the corpus, or those parts of it that an epoch still has to read; they are cut as if they stood one after
    the other, and the first input of a part is the token that stands before it in the corpus.

    Args:
        stream: the tokens of the corpus.
        rows: B, rows of a batch.
        block: T, tokens of a row read at once; the last block may be shorter.
        micro_batches: micro-batches of one update of this process (``--update-freq``), each with rows of its own.
        shard_id, num_shards: which process this is, of how many.
        eos: the symbol that stands before the first token.
        intervals: the parts of the corpus to read, in order; None for all of it. There may be fewer tokens in them than rows.
    Raises:
        ValueError: if there are more rows than tokens, or none, or there is no such shard.
    """

    def __init__(
        self,
        stream: TokenStream,
        *,
        rows: int,
        block: int,
        micro_batches: int,
        shard_id: int,
        num_shards: int,
        eos: int,
        intervals: Sequence[Interval] | None = None,
    ):
        counts = {
            "--batch-size (or --batch-size-valid)": rows,
            "--update-freq": micro_batches,
            "--num-shards": num_shards,
        }
        for option, count in counts.items():
            if count < 1:
                raise ValueError(
                    f"{option} is a number of rows, or of groups of rows: expected at least 1, got {count}"
                )
        if not 0 <= shard_id < num_shards:
            raise ValueError(
                f"--shard-id counts from 0: expected less than the {num_shards} of --num-shards, got {shard_id}"
            )
        total = rows * micro_batches * num_shards
        if intervals is None and len(stream) < total:
            raise ValueError(
                f"{stream.prefixes[0]} has {len(stream)} tokens, fewer than the {total} rows asked for ({rows} of "
                f"--batch-size or --batch-size-valid x {micro_batches} of --update-freq x {num_shards} processes): ask for fewer"
            )
        self.stream = stream
        self.rows, self.block, self.micro_batches = rows, block, micro_batches
        self.shard_id, self.num_shards = shard_id, num_shards
        self.pad, self.eos = stream.pad, eos
        # Rows of the whole corpus start with nothing before them.
        self.whole = intervals is None
        self.intervals: list[Interval] = [(0, len(stream))] if intervals is None else list(intervals)
        # Where each interval ends in the text, which is all of them one after the other.
        self._ends = np.cumsum([stop - start for start, stop in self.intervals]).tolist()
        self.tokens: int = self._ends[-1] if self._ends else 0
        # [G + 1] borders in exact integers: the first row starts at 0, the last ends at N.
        self.borders = [self.tokens * row // total for row in range(total + 1)]
        self.first_row = shard_id * micro_batches * rows
        self.longest = -(-self.tokens // total)
        # Of the rows of a whole epoch.
        self.longest_of_corpus = -(-len(stream) // total)
        self.steps = -(-self.longest // block)

    def __len__(self) -> int:
        return self.steps * self.micro_batches

    def __getitem__(self, index: int) -> dict:
        step, micro_batch = divmod(index, self.micro_batches)
        offset = step * self.block
        width = min(self.block, self.longest - offset)
        source = np.full((self.rows, width), self.pad, dtype=np.int64)  # [B, T]
        target = source.copy()
        lengths = np.zeros(self.rows, dtype=np.int64)
        first = self.first_row + micro_batch * self.rows
        for row in range(self.rows):
            begin, end = self.borders[first + row], self.borders[first + row + 1]
            parts = [
                self._inputs_and_targets(*part)
                for part in self._in_corpus(min(begin + offset, end), min(begin + offset + width, end))
            ]
            if parts:
                inputs, targets = np.concatenate(parts, axis=1)
                lengths[row] = len(targets)
                source[row, : len(inputs)], target[row, : len(targets)] = inputs, targets
        return {
            "id": torch.arange(first, first + self.rows),
            "net_input": {
                "src_tokens": torch.from_numpy(source),
                "src_lengths": torch.from_numpy(lengths),
            },
            "target": torch.from_numpy(target),
            "nsentences": self.rows,
            "ntokens": int(lengths.sum()),
            "micro_batch": micro_batch,
            "micro_batches": self.micro_batches,
            "offset": offset,
        }

    def cut(self, intervals: Sequence[Interval]) -> "BlockDataset":
        """These parts of the corpus, cut into as many rows."""
        return BlockDataset(
            self.stream,
            rows=self.rows,
            block=self.block,
            micro_batches=self.micro_batches,
            shard_id=self.shard_id,
            num_shards=self.num_shards,
            eos=self.eos,
            intervals=intervals,
        )

    def before(self, micro_batch: int, offset: int) -> int:
        """How many tokens at most a row of ``micro_batch`` has before its token ``offset``. Rows of the whole corpus start with nothing
        before them; the first token of other rows follows all of the corpus that stands before it."""
        if self.whole:
            return offset
        return offset + max(self._corpus_start(row) for row in self._rows_of(micro_batch))

    def inputs_before(self, micro_batch: int, offset: int, count: int) -> torch.Tensor:
        """[B, count] int64, the inputs before token ``offset`` of the rows of ``micro_batch``; padding stands in front where a row
        has fewer."""
        inputs = np.full((self.rows, count), self.pad, dtype=np.int64)
        for number, row in enumerate(self._rows_of(micro_batch)):
            begin = self.borders[row]
            parts = self._in_corpus(begin + max(0, offset - count), min(begin + offset, self.borders[row + 1]))
            if not self.whole and offset < count:
                start = self._corpus_start(row)
                parts = [(max(0, start - (count - offset)), start), *parts]
            read = np.concatenate(
                [np.zeros(0, dtype=np.int64), *(self._inputs_and_targets(*part)[0] for part in parts)]
            )
            inputs[number, count - len(read) :] = read
        return torch.from_numpy(inputs)

    def unread(self, batches: int) -> list[Interval]:
        """What is left of the text, in order, when every process has read so many batches."""
        left: list[Interval] = []
        for row in range(len(self.borders) - 1):
            micro_batch = row // self.rows % self.micro_batches
            steps = -(-max(0, batches - micro_batch) // self.micro_batches)
            start, stop = self.borders[row] + steps * self.block, self.borders[row + 1]
            for part in self._in_corpus(start, stop):
                if left and left[-1][1] == part[0]:
                    left[-1] = (left[-1][0], part[1])
                else:
                    left.append(part)
        return left

    def _rows_of(self, micro_batch: int) -> range:
        first = self.first_row + micro_batch * self.rows
        return range(first, first + self.rows)

    def _in_corpus(self, start: int, stop: int) -> list[Interval]:
        """Where tokens ``start`` to ``stop`` of the text stand in the corpus."""
        parts: list[Interval] = []
        number = bisect_right(self._ends, start)
        while start < stop:
            begin, end = self.intervals[number]
            shift = end - self._ends[number]
            upto = min(stop, self._ends[number])
            parts.append((start + shift, upto + shift))
            start, number = upto, number + 1
        return parts

    def _corpus_start(self, row: int) -> int:
        """Where the first token of a row stands in the corpus; 0 if the row has none."""
        parts = self._in_corpus(self.borders[row], self.borders[row + 1])
        return parts[0][0] if parts else 0

    def _inputs_and_targets(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens ``start`` to ``stop`` of the corpus as targets, and the token before each as its input."""
        tokens = self.stream.read(max(start - 1, 0), stop)
        if start == 0:
            tokens = np.concatenate([[self.eos], tokens])
        return tokens[:-1], tokens[1:]

    @staticmethod
    def collate(items: list[dict]) -> dict | None:
        """Each item is a batch already."""
        return items[0] if items else None
