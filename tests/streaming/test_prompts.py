"""Prompts from the items of a split and from typed lines."""

import numpy as np
import pytest
import torch
from fairseq.data.indexed_dataset import MMapIndexedDatasetBuilder

from fairseq_expire.streaming.prompts import PromptDataset, StreamItems
from fairseq_expire.streaming.token_stream import TokenStream

PAD, EOS = 1, 2
ITEMS = [[5, 6, 7, EOS], [], [8], [EOS], [9, EOS, 9, 9, 9, 9, 9, 9], [5, EOS, EOS]]


def write(prefix, items):
    builder = MMapIndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    for item in items:
        builder.add_item(torch.tensor(item, dtype=torch.int64))
    builder.finalize(f"{prefix}.idx")
    return str(prefix)


@pytest.fixture
def prompts(tmp_path):
    """A dataset of items from two parts of a split."""
    parts = [write(tmp_path / "test", ITEMS[:3]), write(tmp_path / "test1", ITEMS[3:])]
    items = StreamItems(TokenStream(parts, num_symbols=20, pad=PAD))
    return PromptDataset(items, items.sizes, pad=PAD, eos=EOS, strip_eos=True, block=4)


def test_items_start_with_eos_and_lose_their_own(prompts):
    assert len(prompts) == 6
    assert [prompts[n]["target"].tolist() for n in range(6)] == ITEMS
    assert [prompts[n]["source"].tolist()[1:] for n in range(6)] == [[5, 6, 7], [], [8], [], ITEMS[4], [5, EOS]]
    assert all(prompts[n]["source"][0] == EOS for n in range(6))


def test_batches(prompts):
    batch = prompts.collater([prompts[0], prompts[4], prompts[1]])
    assert batch["id"].tolist() == [0, 4, 1] and batch["nsentences"] == 3 and batch["ntokens"] == 4 + 9 + 1
    source, target = batch["net_input"]["src_tokens"], batch["target"]
    assert source.shape == target.shape == (3, 9)
    assert batch["net_input"]["src_lengths"].tolist() == source.ne(PAD).sum(1).tolist() == [4, 9, 1]
    assert batch["target_lengths"].tolist() == target.ne(PAD).sum(1).tolist() == [4, 8, 0]
    # The target follows the source token by token, and is padded where the item ends.
    assert target[0].tolist() == [5, 6, 7, EOS, *[PAD] * 5] and target[1].tolist() == [*ITEMS[4], PAD]
    assert prompts.collater([]) == {}


def test_typed_lines_keep_their_eos():
    """A line has a ``</s>`` only if one was typed."""
    lines = PromptDataset(
        [torch.tensor(item) for item in ([5, EOS], [EOS], [5])], [2, 1, 1], pad=PAD, eos=EOS, strip_eos=False, block=4
    )
    assert [lines[n]["source"].tolist() for n in range(3)] == [[EOS, 5, EOS], [EOS, EOS], [EOS, 5]]


def test_every_item_is_batched_and_a_long_one_counts_as_a_block(prompts):
    batches = prompts.batch_by_size(prompts.ordered_indices(), max_tokens=8, required_batch_size_multiple=4)
    assert sorted(number for batch in batches for number in batch) == list(range(6))
    # With the `</s>` in front, lengths are 1, 2, 2, 4, 4 and 9, which counts as 4.
    assert [list(batch) for batch in batches] == [[1, 2, 3], [5, 0], [4]]
    assert len(prompts.batch_by_size(prompts.ordered_indices(), max_sentences=5)) == 2
