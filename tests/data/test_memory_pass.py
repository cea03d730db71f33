"""The handle of a batch: the memory depends on the place in the text, not on how often a batch was run."""

import pytest
import torch
from torch import nn

from fairseq_expire.data.memory_pass import MemoryBatchIterator
from fairseq_expire.data.stream import BlockDataset
from fairseq_expire.modules import LayerMemory, Memory

ROWS, BLOCK, TOKENS = 2, 3, 24


class Counting:
    """Stands for a token stream: token n is n + 4."""

    pad = 1
    prefixes = ["counting"]

    def __len__(self):
        return TOKENS

    def read(self, start, stop):
        return torch.arange(start + 4, stop + 4).numpy()


def iterator(lanes=1, num_workers=0):
    dataset = BlockDataset(Counting(), rows=ROWS, block=BLOCK, lanes=lanes, shard_id=0, num_shards=1, eos=2)
    return MemoryBatchIterator(
        dataset, epoch=1, num_workers=num_workers, buffer_size=0, skip_remainder_batch=False
    )


def memory_of(number):
    """A memory to be told apart from others: its age is its number."""
    return Memory((LayerMemory(torch.zeros(ROWS, 1, 1), torch.full((ROWS, 1), number)),))


def number_of(memory):
    return None if memory is None else memory.layers[0].age[0, 0].item()


def handles(batches):
    return [batch["net_input"]["memory"] for batch in batches]


def store(handle, model, number):
    handle.store(model, handle.load(model), memory_of(number))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_each_block_reads_what_the_one_before_remembered(num_workers):
    model = nn.Linear(1, 1)
    seen = []
    for number, handle in enumerate(handles(iterator(num_workers=num_workers).next_epoch_itr())):
        seen.append(number_of(handle.load(model)))
        store(handle, model, number)
    assert seen == [None, 0, 1, 2]


def test_a_block_run_twice_starts_both_times_from_the_same_memory():
    model = nn.Linear(1, 1)
    first, second, third, _ = handles(iterator().next_epoch_itr())
    store(first, model, 10)
    store(first, model, 11)
    assert first.load(model) is None
    assert number_of(second.load(model)) == 11
    store(second, model, 20)
    assert number_of(second.load(model)) == 11
    store(second, model, 21)
    assert number_of(third.load(model)) == 21


def test_a_block_that_was_skipped_makes_the_memory_older():
    model = nn.Linear(1, 1)
    first, _, _, fourth = handles(iterator().next_epoch_itr())
    store(first, model, 10)
    assert number_of(fourth.load(model)) == 10 + 2 * BLOCK


def test_lanes_models_and_passes_each_have_a_memory_of_their_own():
    one, two = nn.Linear(1, 1), nn.Linear(1, 1)
    batches = iterator(lanes=2)
    first_lane, second_lane, later = handles(batches.next_epoch_itr())[:3]
    store(first_lane, one, 1)
    store(second_lane, one, 2)
    store(first_lane, two, 3)
    assert number_of(later.load(one)) == 1
    assert number_of(later.load(two)) == 3
    again = handles(batches.next_epoch_itr())
    assert again[2].load(one) is None, "a new pass starts cold"


class Reader(nn.Module):
    """A decoder whose memory says how many tokens it stands behind, and which notes the first row of what it reads."""

    def __init__(self, reach):
        super().__init__()
        self.stack = nn.Module()
        self.stack.position, self.stack.reach = nn.Parameter(torch.zeros(1)), reach
        self.stack.empty_memory = lambda rows, read: memory_of(read)
        self.seen = []

    def extract_features(self, tokens, memory):
        self.seen.append(tokens[0].tolist())
        return None, {"memory": memory.aged(tokens.size(1))}


@pytest.mark.parametrize("reach, first", [(3, 6), (4, 3), (6, 3), (100, 0), (None, 0)])
def test_without_a_saved_memory_what_it_reaches_back_to_is_read_again(reach, first, caplog):
    batches, model = iterator(), Reader(reach)
    batches.load_state_dict({"epoch": 1, "iterations_in_epoch": 3, "shuffle": False, "version": 2})
    (rest,) = batches.next_epoch_itr()
    assert rest["offset"] == 9
    (handle,) = handles([rest])
    assert number_of(handle.load(model)) == 9
    # Token n is n + 4, and what is read is one step behind, with </s> in front.
    text = [2, *range(4, 4 + TOKENS)]
    assert model.seen == [text[start : start + BLOCK] for start in range(first, 9, BLOCK)]
    assert f"by reading the last {9 - first} tokens of each row: none was saved" in caplog.text
    handle.load(model)
    assert len(model.seen) == (9 - first) / BLOCK, "once"


def test_the_batch_that_fairseq_keeps_as_a_dummy_has_no_handle():
    assert "memory" not in iterator().first_batch["net_input"]
