"""A corpus as contiguous rows that are read block by block.

Size legend: N tokens in the text, G rows over all processes and micro-batches, B rows of one batch, T tokens of a
block, C labels of a row that count in a block.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from fairseq_expire import requires_fairseq  # noqa: F401

# isort: split
from fairseq.data import FairseqDataset

from fairseq_expire.streaming.corpus import Corpus, Stretch


class StreamDataset(FairseqDataset):
    """One split in the form that fairseq's tools hold; what is read are the blocks of a :class:`BlockDataset`.

    Args:
        corpus: the tokens.
        split: the name of the split.
        training: True if a trainer reads it for training, with the micro-batches of ``--update-freq``.
    """

    def __init__(self, corpus: Corpus, *, split: str, training: bool):
        super().__init__()
        self.corpus = corpus
        self.split = split
        self.training = training

    def __len__(self) -> int:
        return len(self.corpus)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.corpus.read(index, index + 1).targets)


class Interval(NamedTuple):
    """Tokens ``start`` to ``stop`` of a corpus."""

    start: int
    stop: int


class BlockDataset(torch.utils.data.Dataset):
    """Batches of one process: item ``number * micro_batches + micro_batch`` is block ``number`` of ``micro_batch``.

    The text is cut into G = rows * micro_batches * num_shards contiguous rows whose lengths differ by at most one. A
    batch holds B of them. A process has ``micro_batches`` such groups of B rows and reads them in turns. In a text, the
    input is the target shifted by one, across the borders of blocks and rows, and the very first input is ``</s>``:
    every token is a target exactly once. In a stream with labels, the targets are the labels that count, and
    ``net_input`` has their positions in the block.

    The text is the corpus, or the intervals of it that an epoch still has to read. Intervals are cut as if they stood
    one after the other. The first input of an interval is the token that stands before it in the corpus.

    Args:
        corpus: the tokens and their targets.
        rows: B, rows of a batch.
        block: T, tokens of a row that are read at once; the last block may be shorter.
        micro_batches: micro-batches of an update (``--update-freq``), each with rows of its own.
        shard_id: the number of this process.
        num_shards: number of processes.
        intervals: the parts of the corpus to read, in order; None for all of it. They may have fewer tokens than rows.
    Raises:
        ValueError: if there are more rows than tokens, or none; if there is no such process.
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        rows: int,
        block: int,
        micro_batches: int,
        shard_id: int,
        num_shards: int,
        intervals: Sequence[Sequence[int]] | None = None,
    ):
        counts = {
            "--batch-size (or --batch-size-valid)": rows,
            "--update-freq": micro_batches,
            "--num-shards": num_shards,
        }
        for option, count in counts.items():
            if count < 1:
                raise ValueError(f"{option} multiplies the number of rows: expected at least 1, got {count}")
        if not 0 <= shard_id < num_shards:
            raise ValueError(
                f"--shard-id counts from 0: expected less than the {num_shards} of --num-shards, got {shard_id}"
            )
        total = rows * micro_batches * num_shards
        if intervals is None and len(corpus) < total:
            raise ValueError(
                f"{corpus.name} has {len(corpus)} tokens, fewer than the {total} rows asked for ({rows} of "
                f"--batch-size or --batch-size-valid x {micro_batches} of --update-freq x {num_shards} processes): ask "
                "for fewer"
            )
        self.corpus = corpus
        self.rows, self.block, self.micro_batches = rows, block, micro_batches
        self.shard_id, self.num_shards = shard_id, num_shards
        self.pad = corpus.pad
        # The rows of a whole epoch begin without text before them; the rows of an epoch that is continued have some.
        self.whole_epoch = intervals is None
        self.intervals = [Interval(0, len(corpus))] if intervals is None else [Interval(*each) for each in intervals]
        # The end of each interval in the text, in which they stand one after the other.
        self._ends = np.cumsum([stop - start for start, stop in self.intervals]).tolist()
        self.tokens: int = self._ends[-1] if self._ends else 0
        # [G + 1], the start of each row in the text, and the end of the last; Python's integers do not overflow.
        self.row_borders = [self.tokens * row // total for row in range(total + 1)]
        self.first_row = shard_id * micro_batches * rows
        self.longest_row = -(-self.tokens // total)
        self.longest_row_of_epoch = -(-len(corpus) // total)
        self.num_blocks = -(-self.longest_row // block)

    def __len__(self) -> int:
        return self.num_blocks * self.micro_batches

    def __getitem__(self, index: int) -> dict:
        number, micro_batch = divmod(index, self.micro_batches)
        offset = number * self.block
        width = min(self.block, self.longest_row - offset)
        rows = self._rows_of(micro_batch)
        read = []
        for row in rows:
            begin, end = self.row_borders[row], self.row_borders[row + 1]
            read.append(self._read(min(begin + offset, end), min(begin + offset + width, end)))
        lengths = [len(stretch.inputs) for stretch in read]
        batch = {
            "id": torch.tensor(rows),
            "net_input": {
                "src_tokens": self._padded([stretch.inputs for stretch in read], width),
                "src_lengths": torch.tensor(lengths),
            },
            "target": self._padded([stretch.targets for stretch in read], width),
            "nsentences": self.rows,
            "ntokens": sum(lengths),
            "micro_batch": micro_batch,
            "micro_batches": self.micro_batches,
            "offset": offset,
        }
        if all(stretch.answers is not None for stretch in read):
            batch["answers"] = self._padded([stretch.answers for stretch in read], width, 0)
        if self.corpus.labels_per_token is not None:
            self._leave_out_uncounted(batch)
        return batch

    def _leave_out_uncounted(self, batch: dict) -> None:
        """Makes targets and answers [B, C] of [B, T]: those of the labels that count, C at least 1."""
        counted = batch["target"] != self.pad
        number = counted.sum(dim=1)
        # A stable sort moves the counted ones of each row to the front and leaves them in order.
        places = (~counted).to(torch.uint8).argsort(dim=1, stable=True)[:, : max(1, int(number.max()))]
        missing = torch.arange(places.size(1)) >= number.unsqueeze(1)
        batch["net_input"]["positions"] = places.masked_fill(missing, 0)
        batch["target"] = batch["target"].gather(1, places)
        batch["answers"] = batch["answers"].gather(1, places)
        batch["labels_per_token"] = self.corpus.labels_per_token

    def _padded(self, rows: Sequence[np.ndarray], width: int, padding: int | None = None) -> torch.Tensor:
        """Returns rows of several lengths as [B, width], with padding at their ends."""
        padding = self.pad if padding is None else padding
        out = np.full((len(rows), width), padding, dtype=rows[0].dtype)
        for line, row in zip(out, rows):
            line[: len(row)] = row
        return torch.from_numpy(out)

    def with_intervals(self, intervals: Sequence[Sequence[int]]) -> "BlockDataset":
        """Returns the blocks of other parts of the corpus, cut into as many rows."""
        return BlockDataset(
            self.corpus,
            rows=self.rows,
            block=self.block,
            micro_batches=self.micro_batches,
            shard_id=self.shard_id,
            num_shards=self.num_shards,
            intervals=intervals,
        )

    def num_tokens_before(self, micro_batch: int, offset: int) -> int:
        """Returns the largest number of tokens, over the rows of the micro-batch, that stand before token ``offset``.

        The rows of a whole epoch have only their own tokens there. Before other rows stands the corpus up to their
        first token.
        """
        if self.whole_epoch:
            return offset
        return offset + max(self._corpus_start(row) for row in self._rows_of(micro_batch))

    def inputs_before(self, micro_batch: int, offset: int, count: int) -> torch.Tensor:
        """Returns the inputs before token ``offset`` of each row, [B, count] int64, padded in front."""
        inputs = np.full((self.rows, count), self.pad, dtype=np.int64)
        for number, row in enumerate(self._rows_of(micro_batch)):
            begin = self.row_borders[row]
            tokens = self._read(begin + max(0, offset - count), min(begin + offset, self.row_borders[row + 1])).inputs
            if not self.whole_epoch and offset < count:
                start = self._corpus_start(row)
                before = self.corpus.read(max(0, start - (count - offset)), start).inputs
                tokens = np.concatenate([before, tokens])
            inputs[number, count - len(tokens) :] = tokens
        return torch.from_numpy(inputs)

    def tokens_since(self, symbol: int, micro_batch: int, offset: int, *, back: int = 0) -> list[int | None]:
        """Returns for each row how many inputs stand from the last ``symbol`` on to a place; None where none is before.

        Args:
            symbol: the symbol that is looked for; it counts as one of the inputs.
            micro_batch: the rows.
            offset, back: the place stands ``back`` tokens before token ``offset`` of each row.
        """
        before = self.num_tokens_before(micro_batch, offset) - back
        found: list[int | None] = [None] * self.rows
        count = self.block
        while before > 0 and None in found:
            count = min(2 * count, before)
            inputs = self.inputs_before(micro_batch, offset, back + count)[:, :count]
            for row, places in enumerate(inputs.eq(symbol)):
                if places.any():
                    found[row] = count - int(places.nonzero()[-1])
            if count == before:
                break
        return found

    def unread(self, batches: int) -> list[Interval]:
        """Returns the parts of the text, in order, that are not read when every process has read so many batches."""
        unread: list[Interval] = []
        for row in range(len(self.row_borders) - 1):
            micro_batch = row // self.rows % self.micro_batches
            num_blocks = -(-max(0, batches - micro_batch) // self.micro_batches)
            start, stop = self.row_borders[row] + num_blocks * self.block, self.row_borders[row + 1]
            for interval in self._in_corpus(start, stop):
                if unread and unread[-1].stop == interval.start:
                    unread[-1] = Interval(unread[-1].start, interval.stop)
                else:
                    unread.append(interval)
        return unread

    def _rows_of(self, micro_batch: int) -> range:
        first = self.first_row + micro_batch * self.rows
        return range(first, first + self.rows)

    def _in_corpus(self, start: int, stop: int) -> list[Interval]:
        """Returns the intervals of the corpus in which tokens ``start`` to ``stop`` of the text stand."""
        found: list[Interval] = []
        number = bisect_right(self._ends, start)
        while start < stop:
            shift = self.intervals[number].stop - self._ends[number]
            end = min(stop, self._ends[number])
            found.append(Interval(start + shift, end + shift))
            start, number = end, number + 1
        return found

    def _corpus_start(self, row: int) -> int:
        """Returns the position of a row's first token in the corpus; 0 if the row is empty."""
        intervals = self._in_corpus(self.row_borders[row], self.row_borders[row + 1])
        return intervals[0].start if intervals else 0

    def _read(self, start: int, stop: int) -> Stretch:
        """Reads tokens ``start`` to ``stop`` of the text."""
        parts = [self.corpus.read(*interval) for interval in self._in_corpus(start, stop)]
        # Nothing, read where it can be read, has the right types.
        parts = parts or [self.corpus.read(0, 0)]
        return Stretch(*(None if values[0] is None else np.concatenate(values) for values in zip(*parts)))

    @staticmethod
    def collate(items: list[dict]) -> dict | None:
        """Returns the one item, which is a batch already."""
        return items[0] if items else None
