"""Texts to be continued: the items of a split, or lines as they are typed.

Size legend: B rows of a batch, N tokens of its longest item.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from fairseq_expire import requires_fairseq  # noqa: F401

# isort: split
from fairseq.data import FairseqDataset, data_utils
from fairseq.data.indexed_dataset import MMapIndexedDataset, index_file_path
from torch import Tensor

from fairseq_expire.streaming.stream import TokenStream


class Items(Protocol):
    """Item number n, [length] int64."""

    def __getitem__(self, index: int) -> Tensor: ...


class StreamItems:
    """The items of a split (lines, documents, files) among its tokens, read when they are asked for."""

    def __init__(self, stream: TokenStream):
        self.stream = stream
        self.sizes = np.concatenate([_item_sizes(prefix) for prefix in stream.prefixes])
        self._ends = np.cumsum(self.sizes)

    def __getitem__(self, index: int) -> Tensor:
        end = int(self._ends[index])
        return torch.from_numpy(self.stream.read(end - int(self.sizes[index]), end))


def _item_sizes(prefix: str) -> np.ndarray:
    index = MMapIndexedDataset.Index(index_file_path(prefix))
    # A copy: the index takes its file out of memory when it goes.
    return index.sizes.astype(np.int64)


class PromptDataset(FairseqDataset):
    """Items as prompts.

    Batches are made as fairseq's, of items of about the same length. An item counts with at most ``block`` tokens, since
    longer ones are read block by block.

    Args:
        items: the tokens of each.
        sizes: their lengths.
        pad, eos: symbols of the dictionary; no item holds padding.
        ended: whether a ``</s>`` that ends an item is its end, as in a split, and not part of the prompt: what is written goes on
            in its place.
        block: tokens of a row that are read at once.
    """

    # A dataset of a few lines is made anew for each of them, so a task that kept its batches would grow without end.
    can_reuse_epoch_itr_across_epochs = False

    def __init__(self, items: Items, sizes: Sequence[int], *, pad: int, eos: int, ended: bool, block: int):
        super().__init__()
        self.items = items
        self.sizes = np.asarray(sizes, dtype=np.int64)
        self.pad, self.eos, self.ended = pad, eos, ended
        self.block = block

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> dict:
        item = self.items[index]
        prompt = item[:-1] if self.ended and len(item) and item[-1] == self.eos else item
        return {"id": index, "source": torch.cat([item.new_tensor([self.eos]), prompt]), "target": item}

    def collater(self, samples: list[dict]) -> dict:
        """A batch of fairseq's: in ``net_input`` the prompts after a ``</s>``, [B, 1 + N]; as ``target`` the whole items; the
        lengths [B] of both."""
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
        """Batches of all items: asked for a multiple, this fairseq leaves out a last batch that is none."""
        return super().batch_by_size(indices, max_tokens, max_sentences)
