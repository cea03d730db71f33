"""Handles of batches: the memory depends on the place in the text, not on how often a batch is run."""

import io
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fairseq_expire.modules import LayerMemory, Memory
from fairseq_expire.streaming.batch_iterator import MemoryBatchIterator
from fairseq_expire.streaming.blocks import BlockDataset
from fairseq_expire.streaming.corpus import TextCorpus

# TOKENS are those of one micro-batch.
ROWS, BLOCK, TOKENS = 2, 3, 24


class Counting:
    """A stand-in for a token stream whose token n is n + ``first``."""

    pad = 1
    prefixes = ["counting"]

    def __init__(self, tokens, first):
        self.tokens, self.first = tokens, first

    def __len__(self):
        return self.tokens

    def read(self, start, stop):
        return torch.arange(start + self.first, stop + self.first).numpy()


def iterator(
    micro_batches=1,
    num_workers=0,
    buffer_size=0,
    rows=ROWS,
    block=BLOCK,
    tokens=None,
    first=4,
    shard_id=0,
    num_shards=1,
):
    stream = Counting(tokens or TOKENS * micro_batches * num_shards, first)
    dataset = BlockDataset(
        TextCorpus(stream, eos=2),
        rows=rows,
        block=block,
        micro_batches=micro_batches,
        shard_id=shard_id,
        num_shards=num_shards,
    )
    return MemoryBatchIterator(
        dataset, epoch=1, num_workers=num_workers, buffer_size=buffer_size, skip_remainder_batch=False
    )


def memory_of(number):
    """Returns a memory that is recognised by its age, the number."""
    age = torch.full((ROWS, 1), number)
    return Memory((LayerMemory.from_tensors(age=age, inputs=torch.zeros(ROWS, 1, 1)),))


def number_of(memory):
    return None if memory is None else memory.layers[0].age[0, 0].item()


def handles(batches):
    return [batch["net_input"]["memory"] for batch in batches]


def store(handle, model, number):
    handle.store(model, handle.load(model), memory_of(number))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_each_block_reads_the_memory_after_the_one_before(num_workers):
    model = nn.Linear(1, 1)
    seen = []
    for number, handle in enumerate(handles(iterator(num_workers=num_workers).next_epoch_itr())):
        seen.append(number_of(handle.load(model)))
        store(handle, model, number)
    assert seen == [None, 0, 1, 2]


def test_a_block_that_is_run_twice_starts_from_the_same_memory():
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


def test_the_memory_ages_by_a_skipped_block():
    model = Reader(None)
    first, _, _, fourth = handles(iterator().next_epoch_itr())
    store(first, model, 10)
    assert number_of(fourth.load(model)) == 10 + 2 * BLOCK


def test_micro_batches_models_and_passes_each_have_a_memory_of_their_own():
    one, two = Reader(None), Reader(None)
    batches = iterator(micro_batches=2)
    first_micro_batch, second_micro_batch, later = handles(batches.next_epoch_itr())[:3]
    store(first_micro_batch, one, 1)
    store(second_micro_batch, one, 2)
    store(first_micro_batch, two, 3)
    assert number_of(later.load(one)) == 1
    assert number_of(later.load(two)) == 3
    again = handles(batches.next_epoch_itr())
    # A new pass starts without memory. If its first block is skipped, the second starts with an empty, older one.
    assert again[0].load(one) is None
    (nothing,) = again[2].load(one).layers
    assert nothing.counts == (0, 0) and nothing.tokens_read == (BLOCK, BLOCK)


def resumed(state=None, **settings):
    """Returns the batches after the first two of each micro-batch, and their iterator."""
    batches = iterator(**settings)
    done = 2 * settings.get("micro_batches", 1)
    batches.load_state_dict({"epoch": 1, "iterations_in_epoch": done, "shuffle": False, "version": 2})
    if state is not None:
        batches.load_memory_state(state)
    return list(batches.next_epoch_itr()), batches


def saved(micro_batches=1):
    """Returns the state after two batches of each micro-batch, saved and loaded; the memories are 10, 11 and so on."""
    model = nn.Linear(1, 1)
    batches = iterator(micro_batches=micro_batches)
    read = batches.next_epoch_itr()
    for number in range(2 * micro_batches):
        store(next(read)["net_input"]["memory"], model, 10 + number)
    file = io.BytesIO()
    torch.save(batches.memory_state(), file)
    return torch.load(io.BytesIO(file.getvalue()))


@pytest.mark.parametrize("num_workers, buffer_size", [(0, 0), (0, 10), (1, 10), (4, 10)])
def test_continues_with_saved_memories(num_workers, buffer_size):
    """Workers have read further by then."""
    model = nn.Linear(1, 1)
    batches = iterator(micro_batches=2, num_workers=num_workers, buffer_size=buffer_size)
    read = batches.next_epoch_itr()
    for number in range(4):
        store(next(read)["net_input"]["memory"], model, number)
    state = batches.memory_state()
    rest, _ = resumed(state, micro_batches=2, num_workers=num_workers, buffer_size=buffer_size)
    assert [(batch["micro_batch"], batch["offset"]) for batch in rest] == [(0, 6), (1, 6), (0, 9), (1, 9)]
    assert [number_of(handle.load(nn.Linear(1, 1))) for handle in handles(rest)[:2]] == [2, 3]
    for batch, other in zip(rest, read):
        assert torch.equal(batch["target"], other["target"])


def test_a_saved_memory_is_used_like_any_other():
    model = Reader(None)
    rest, batches = resumed(saved(micro_batches=2), micro_batches=2)
    first, _, later, other = handles(rest)
    assert number_of(first.load(model)) == 12
    # The other micro-batch is skipped, as a batch that is too large, before this is saved.
    store(first, model, 20)
    assert number_of(first.load(model)) == 12 and number_of(later.load(model)) == 20
    memories = batches.memory_state()["memories"]
    numbers = {key: (saved["end"], saved["memory"]["0.age"][0, 0].item()) for key, saved in memories.items()}
    assert numbers == {0: (9, 20), 1: (6, 13)}
    # In the last block, the memory of the other micro-batch has aged by the skipped text.
    assert number_of(other.load(model)) == 13 + BLOCK


def test_a_saved_memory_takes_the_type_of_the_weights():
    model = nn.Linear(1, 1).double()
    rest, _ = resumed(saved())
    assert handles(rest)[0].load(model).layers[0].inputs.dtype == torch.float64


@pytest.mark.parametrize(
    "change, difference",
    [
        ({"rows": 3}, "rows 2 where this run has 3"),
        ({"micro_batches": 2}, "micro-batches 1 where this run has 2"),
        ({"num_shards": 2, "shard_id": 1}, "process 0 where this run has 1, processes 1 where this run has 2"),
        ({"block": 2}, "tokens in a block 3 where this run has 2"),
        ({"tokens": 23}, "tokens in the split 24 where this run has 23"),
        ({"first": 5}, "checksum of the text .* where this run has .*"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_memory_of_another_layout(change, difference):
    with pytest.raises(ValueError, match=f"of another layout: {difference}"):
        resumed(saved(), **change)


def test_a_memory_of_another_place():
    state = saved()
    batches = iterator()
    batches.load_state_dict({"epoch": 1, "iterations_in_epoch": 3, "shuffle": False, "version": 2})
    with pytest.raises(ValueError, match="batches read 2 where this run has 3"):
        batches.load_memory_state(state)


class Reader(nn.Module):
    """Stands for a language model: remembers the tokens themselves, one step apart."""

    def __init__(self, max_age):
        super().__init__()
        self.stack = nn.Module()
        self.stack.position = nn.Parameter(torch.zeros(1))
        self.stack.max_age = max_age
        self.stack.empty_memory = lambda batch, tokens_read: Memory.empty(
            batch=batch, num_layers=1, embed_dim=1, like=self.stack.position
        ).advance(tokens_read)
        self.config = SimpleNamespace(document_start=None)

    def read(self, tokens, memory):
        assert not torch.is_grad_enabled()
        torch.rand(1)
        (layer,) = memory.layers
        layer = layer.append(layer.block_age(tokens.size(1), tokens == 1), inputs=tokens.unsqueeze(-1).float())
        return SimpleNamespace(memory=Memory((layer.advance(tokens.size(1)),)))


@pytest.mark.parametrize("max_age, tokens", [(1, 3), (3, 3), (4, 6), (100, 6), (None, 6)])
def test_a_lost_memory_is_made_by_reading_again(caplog, max_age, tokens):
    rest, _ = resumed(rows=2)
    model = Reader(max_age)
    numbers = torch.random.get_rng_state()
    (layer,) = handles(rest)[0].load(model).layers
    # The second row begins with token 12, which is 16; its first input is the token before.
    assert layer.inputs.squeeze(-1).tolist() == [[2, *range(4, 9)][-tokens:], list(range(15, 21))[-tokens:]]
    assert layer.age[0].tolist() == list(range(tokens, 0, -1)) and layer.tokens_read == (6, 6)
    assert f"reading the last {tokens} tokens of each row: none was saved with the checkpoint" in caplog.text
    # It draws no random numbers, and happens once.
    assert torch.equal(torch.random.get_rng_state(), numbers)
    assert handles(rest)[0].load(model).layers[0] is layer


def test_fairseqs_dummy_batch_has_no_handle():
    assert "memory" not in iterator().first_batch["net_input"]
