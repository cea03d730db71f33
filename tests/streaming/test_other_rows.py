"""An epoch that is stopped and goes on in other rows, blocks, groups or processes: every token is read once, after the token
before it, with the text before it remembered."""

import itertools
import json

import numpy as np
import pytest
import torch
from building import build
from fuzzing import fuzz
from hypothesis import strategies as st

from fairseq_expire.streaming.memory_pass import MemoryBatchIterator
from fairseq_expire.streaming.stream import BlockDataset

PAD, EOS, FIRST = 1, 2, 4


class Numbers:
    """Stands for a token stream: token n is n + 4, so that the one before it is known."""

    pad = PAD

    def __init__(self, tokens, prefix="numbers", first=FIRST):
        self.tokens, self.prefixes, self.first = tokens, [prefix], first

    def __len__(self):
        return self.tokens

    def read(self, start, stop):
        return np.arange(start, stop) + self.first


def process(stream, layout, shard_id, skip_remainder_batch=False):
    rows, block, lanes, num_shards = layout
    dataset = BlockDataset(
        stream, rows=rows, block=block, lanes=lanes, shard_id=shard_id, num_shards=num_shards, eos=EOS
    )
    return MemoryBatchIterator(
        dataset, epoch=1, num_workers=0, buffer_size=0, skip_remainder_batch=skip_remainder_batch
    )


def processes(stream, layout, state=None, **options):
    """The iterators of all processes of a run, where a state was saved."""
    made = [process(stream, layout, shard_id, **options) for shard_id in range(layout[-1])]
    if state is not None:
        for batches in made:
            # As a checkpoint has it.
            batches.load_state_dict(json.loads(json.dumps(state)))
    return made


def pairs(batch):
    """(input, target) of each token of a batch."""
    source, target = batch["net_input"]["src_tokens"], batch["target"]
    assert torch.equal(source == PAD, target == PAD)
    assert batch["net_input"]["src_lengths"].tolist() == (target != PAD).sum(dim=1).tolist()
    assert batch["ntokens"] == (target != PAD).sum()
    real = target != PAD
    return list(zip(source[real].tolist(), target[real].tolist()))


layouts = st.tuples(st.integers(1, 6), st.integers(1, 20), st.integers(1, 3), st.integers(1, 3))


def whole_epoch(data):
    """Runs with layouts that are drawn, each but the last stopped in the middle of the epoch."""
    tokens = data.draw(st.integers(1, 300), label="tokens")
    fitting = layouts.filter(lambda layout: layout[0] * layout[2] * layout[3] <= tokens)
    stream, state, read = Numbers(tokens), None, []
    for run in range(data.draw(st.integers(1, 5), label="runs"), 0, -1):
        layout = data.draw(fitting, label="layout")
        made = processes(stream, layout, state)
        passes = [batches.next_epoch_itr() for batches in made]
        first, total, lanes = passes[0].n, len(passes[0]), layout[2]
        assert {(batches.n, len(batches)) for batches in passes} == {(first, total)}
        # fairseq reads as many batches in each update as there are groups of rows.
        updates = (total - first) // lanes
        assert updates * lanes == total - first > 0 and first % lanes == 0
        if state is not None:
            assert first > 0
        if run > 1 and updates > 1:
            updates = data.draw(st.integers(1, updates - 1), label="updates")
        for batches in passes:
            for _ in range(updates * lanes):
                read += pairs(next(batches))
        assert made[0].iterations_in_epoch == first + updates * lanes
        if made[0].end_of_epoch():
            break
        state = made[0].state_dict()
        assert all(batches.state_dict() == state for batches in made)
    assert sorted(read) == [(EOS if n == 0 else n + 3, n + 4) for n in range(tokens)]
    # The next epoch reads everything again, from the start of rows of the whole text.
    assert all(batches.end_of_epoch() for batches in made)
    again = [batch for batches in made for batch in batches.next_epoch_itr()]
    assert sorted(pair for batch in again for pair in pairs(batch)) == sorted(read) and made[0].epoch == 2


def test_every_token_is_read_once_whatever_the_rows(long):
    fuzz(whole_epoch, examples=200, long=long, data=st.data())


def same_number_of_rows(tokens, rows, lanes, num_shards, block, done, other):
    total = rows * lanes * num_shards
    if total > tokens:
        return
    begun = BlockDataset(
        Numbers(tokens), rows=rows, block=block, lanes=lanes, shard_id=0, num_shards=num_shards, eos=EOS
    )
    done %= begun.steps
    rest = BlockDataset(
        Numbers(tokens), rows=1, block=other, lanes=1, shard_id=0, num_shards=total, eos=EOS,
        intervals=begun.unread(done * lanes),
    )  # fmt: skip
    for row in range(total):
        left = range(begun.borders[row] + done * block, begun.borders[row + 1])
        (begin, end) = rest.borders[row : row + 2]
        assert [n for part in rest._in_corpus(begin, end) for n in range(*part)] == list(left)


def test_as_many_rows_go_on_each_by_itself(long):
    """With other blocks, or spread over other processes and groups."""
    small = st.integers(1, 6)
    fuzz(
        same_number_of_rows, examples=200, long=long, tokens=st.integers(1, 500), rows=small, lanes=small, num_shards=small,
        block=st.integers(1, 20), done=st.integers(0, 500), other=st.integers(1, 20),
    )  # fmt: skip


def stopped(layout, updates, tokens=90, **options):
    """The state after so many updates."""
    made = process(Numbers(tokens), layout, 0, **options)
    batches = made.next_epoch_itr()
    for _ in range(updates * layout[2]):
        next(batches)
    return made.state_dict()


LONG = {
    "expire_span_lm": ["--max-span", "24", "--span-ramp", "4", "--span-init", "10"],
    "adaptive_span_lm": ["--max-span", "40", "--span-init", "30", "--span-ramp", "5"],
    "compressive_transformer_lm": ["--max-span", "6", "--compressed-size", "30", "--compression-rate", "3"],
    "transformer_xl_lm": ["--max-span", "17"],
}


@pytest.mark.parametrize("arch", LONG)
def test_rows_remember_the_text_before_them(caplog, arch):
    """As if each had been read from there by itself, though rows at the start of the corpus have less before them."""
    torch.manual_seed(0)
    size = ["--decoder-layers", "2", "--decoder-embed-dim", "8", "--decoder-ffn-embed-dim", "8"]
    model = build(
        *size, "--decoder-attention-heads", "2", "--dropout", "0", "--position-range", "8", *LONG[arch], arch=arch
    ).decoder.model
    model.train()
    block = 8
    reach = -(-model.stack.max_age // block) * block
    (batches,) = processes(Numbers(90), (3, block, 2, 1), stopped((2, 5, 1, 1), updates=3))
    for batch in itertools.islice(batches.next_epoch_itr(), 2):
        memory = batch["net_input"]["memory"].load(model)
        for row, first in enumerate(batch["net_input"]["src_tokens"][:, 0].tolist()):
            # The number of the token that is predicted first: 15 of the 45 in each of the two rows have been read.
            start = first - 3
            assert start >= 15
            text = torch.tensor([[EOS, *range(FIRST, 100)][max(0, start - reach) : start]])
            # Blocks may be cut in any way, but the groups of a compressive memory are counted from the first token that is read.
            skipped = max(layer.tokens_read for layer in memory.layers) - text.size(1)
            alone = model.stack.empty_memory(1, tokens_read=skipped)
            for part in text.split(5, dim=1):
                alone = model.read(part, alone).memory
            for layer, other in zip(memory.layers, alone.layers):
                # Compressed states stand where they were made, which depends on blocks.
                here, there = layer.age[row].sort(), other.age[0].sort()
                count = int(layer.occupied[row].sum())
                assert here.values[:count].tolist() == there.values[:count].tolist() and count == int(
                    other.occupied.sum()
                )
                torch.testing.assert_close(
                    layer.inputs[row, here.indices[:count]], other.inputs[0, there.indices[:count]]
                )
    assert (
        "tokens of each row: the memory beside the checkpoint is of another layout: rows 2 where this run has 3"
        in caplog.text
    )


@pytest.mark.parametrize("offset", [0, 5, 10])
@pytest.mark.parametrize("count", [3, 10, 40])
def test_what_stands_before_a_place_in_a_row(offset, count):
    """Rows of what is left: their own text so far, from several places of the corpus, and before that the corpus."""
    rest = BlockDataset(
        Numbers(90), rows=2, block=5, lanes=2, shard_id=0, num_shards=1, eos=EOS, intervals=[(7, 20), (31, 40), (50, 80)]
    )  # fmt: skip
    text = [*range(7, 20), *range(31, 40), *range(50, 80)]
    for lane in range(2):
        found = rest.inputs_before(lane, offset, count).tolist()
        for row, inputs in zip((2 * lane, 2 * lane + 1), found):
            begin = rest.borders[row]
            places = [*range(text[begin]), *text[begin : begin + offset]][-count:]
            expected = [EOS if place == 0 else place - 1 + FIRST for place in places]
            assert inputs == [PAD] * (count - len(expected)) + expected
        assert rest.before(lane, offset) == offset + max(text[rest.borders[row]] for row in (2 * lane, 2 * lane + 1))


def test_the_place_in_the_epoch_goes_on(caplog):
    """What a progress bar shows: 30 of 90 tokens are read, and so two of six steps of fifteen tokens."""
    caplog.set_level("INFO")
    (batches,) = processes(Numbers(90), (3, 5, 1, 1), stopped((2, 5, 1, 1), updates=3))
    epoch = batches.next_epoch_itr()
    assert (epoch.n, len(epoch)) == (2, 6)
    assert "epoch 1 goes on in other rows (rows 2 where this run has 3): 60 of its 90 tokens are left" in caplog.text


def test_more_rows_than_tokens_are_left():
    state = stopped((1, 10, 1, 1), updates=8)
    (batches,) = processes(Numbers(90), (30, 10, 2, 1), state)
    read = [pair for batch in batches.next_epoch_itr() for pair in pairs(batch)]
    assert sorted(target for _, target in read) == list(range(80 + FIRST, 90 + FIRST))


@pytest.mark.parametrize(
    "layout, other, updates",
    [
        # The last of three blocks is all that is left, and is left out.
        ((3, 10, 1, 1), (3, 10, 1, 1), 2),
        ((3, 10, 1, 1), (1, 40, 1, 1), 2),
        ((2, 10, 2, 1), (2, 10, 2, 1), 2),
        ((2, 10, 1, 1), (3, 10, 2, 1), 4),
    ],
)
def test_nothing_is_left(layout, other, updates):
    (batches,) = processes(Numbers(90), other, stopped(layout, updates), skip_remainder_batch=True)
    assert batches.nothing_left
    (batches,) = processes(Numbers(90), other, stopped(layout, updates))
    assert not batches.nothing_left


@pytest.mark.parametrize("stream", [Numbers(91), Numbers(90, first=5)], ids=["longer", "other-words"])
@pytest.mark.parametrize("layout", [(2, 5, 1, 1), (3, 5, 1, 1)], ids=["same-rows", "other-rows"])
def test_another_text(stream, layout):
    with pytest.raises(
        ValueError, match=r"in the middle of epoch 1 over another text \(90 tokens\) than numbers .*--reset-dataloader"
    ):
        processes(stream, layout, stopped((2, 5, 1, 1), updates=3))


def test_a_state_of_an_earlier_version():
    """It counts batches of rows that are not known."""
    state = {"epoch": 1, "iterations_in_epoch": 8, "shuffle": False, "version": 2}
    (batches,) = processes(Numbers(90), (2, 5, 1, 1), state)
    assert batches.next_epoch_itr().n == 8
    with pytest.raises(
        ValueError, match="saved after 8 batches of an epoch, and this run has 5 in all: .* --reset-dataloader"
    ):
        processes(Numbers(90), (4, 5, 1, 1), state)
