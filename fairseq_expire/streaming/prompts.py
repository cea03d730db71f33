"""Prompts, the texts that are continued: the items of a split, or typed lines.

Size legend: B rows of a batch, N tokens of its longest item.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from fairseq_expire import requires_fairseq  # noqa: F401

# isort: split
from fairseq.data import FairseqDataset, data_utils
from torch import Tensor

from fairseq_expire.streaming.token_stream import TokenStream


class Items(Protocol):
    """A sequence of texts: item number n is [length] int64."""

    def __getitem__(self, index: int) -> Tensor: ...


class StreamItems:
    """The items of a split (lines, documents or files), read on demand."""

    def __init__(self, stream: TokenStream):
        self.stream = stream
        self.sizes = stream.item_sizes()
        self._ends = np.cumsum(self.sizes)

    def __getitem__(self, index: int) -> Tensor:
        end = int(self._ends[index])
        return torch.from_numpy(self.stream.read(end - int(self.sizes[index]), end))


class PromptDataset(FairseqDataset):
    """Items as prompts, in batches of about the same length.

    Args:
        items: the tokens of each item.
        sizes: the length of each item.
        pad: index of the padding symbol, which no item holds.
        eos: index of ``</s>``.
        strip_eos: leave out a ``</s>`` at the end of an item, which ends the items of a split; generation replaces it.
        block: number of tokens of a row that are read at once. ``--max-tokens`` counts longer items as one block.
    """

    # fairseq-interactive makes a dataset for each line, so a task that kept their batches would grow without end.
    can_reuse_epoch_itr_across_epochs = False

    def __init__(self, items: Items, sizes: Sequence[int], *, pad: int, eos: int, strip_eos: bool, block: int):
        super().__init__()
        self.items = items
        self.sizes = np.asarray(sizes, dtype=np.int64)
        self.pad, self.eos, self.strip_eos = pad, eos, strip_eos
        self.block = block

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> dict:
        item = self.items[index]
        prompt = item[:-1] if self.strip_eos and len(item) and item[-1] == self.eos else item
        return {"id": index, "source": torch.cat([item.new_tensor([self.eos]), prompt]), "target": item}

    def collater(self, samples: list[dict]) -> dict:
        """Makes a batch in fairseq's form.

        Args:
            samples: items of this dataset.
        Returns:
            a dict with ``net_input``, the prompts after a ``</s>`` [B, 1 + N], ``target``, the whole items, and the
            lengths [B] of both.
        """
        if not samples:
            return {}
        width = max(len(sample["source"]) for sample in samples)
        source, target = (
            data_utils.collate_tokens([sample[name] for sample in samples], self.pad, pad_to_length=width)
            for name in ("source", "target")
        )
        lengths = torch.tensor([len(sample["source"]) for sample in samples])
        return {
            "id": torch.tensor([sample["id"] for sample in samples]),
            "net_input": {"src_tokens": source, "src_lengths": lengths},
            "target": target,
            "target_lengths": torch.tensor([len(sample["target"]) for sample in samples]),
            "nsentences": len(samples),
            "ntokens": int(lengths.sum()),
        }

    def num_tokens(self, index: int) -> int:
        return int(self.num_tokens_vec(np.array([index]))[0])

    def num_tokens_vec(self, indices: np.ndarray) -> np.ndarray:
        return np.minimum(self.sizes[indices] + 1, self.block)

    def size(self, index: int) -> int:
        return int(self.sizes[index])

    def ordered_indices(self) -> np.ndarray:
        return np.argsort(self.sizes, kind="stable")

    def batch_by_size(
        self,
        indices: np.ndarray,
        max_tokens: int | None = None,
        max_sentences: int | None = None,
        required_batch_size_multiple: int = 1,
    ) -> list[list[int]]:
        """Returns the batches of all items; with a required multiple, fairseq would drop the last batch."""
        return super().batch_by_size(indices, max_tokens, max_sentences)
