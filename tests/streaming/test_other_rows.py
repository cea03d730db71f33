"""Epochs that continue in other rows, blocks, micro-batches or processes.

Every token is read once, after the token before it, with the memory of the text before it.
"""

import itertools
import json

import numpy as np
import pytest
import torch
from building import build
from fuzzing import fuzz
from hypothesis import strategies as st

from fairseq_expire.streaming.batch_iterator import MemoryBatchIterator
from fairseq_expire.streaming.blocks import BlockDataset
from fairseq_expire.streaming.corpus import TextCorpus

PAD, EOS, FIRST = 1, 2, 4


class Numbers:
    """A stand-in for a token stream whose token n is n + 4, so that the token before is known."""

    pad = PAD

    def __init__(self, tokens, prefix="numbers", first=FIRST):
        self.tokens, self.prefixes, self.first = tokens, [prefix], first

    def __len__(self):
        return self.tokens

    def read(self, start, stop):
        return np.arange(start, stop) + self.first


def process(stream, layout, shard_id, skip_remainder_batch=False):
    rows, block, micro_batches, num_shards = layout
    dataset = BlockDataset(
        TextCorpus(stream, eos=EOS),
        rows=rows,
        block=block,
        micro_batches=micro_batches,
        shard_id=shard_id,
        num_shards=num_shards,
    )
    return MemoryBatchIterator(
        dataset, epoch=1, num_workers=0, buffer_size=0, skip_remainder_batch=skip_remainder_batch
    )


def processes(stream, layout, state=None, **options):
    """Returns the iterators of all processes of a run, with a saved state if there is one."""
    made = [process(stream, layout, shard_id, **options) for shard_id in range(layout[-1])]
    if state is not None:
        for batches in made:
            # As a checkpoint would hold it.
            batches.load_state_dict(json.loads(json.dumps(state)))
    return made


def pairs(batch):
    """Returns (input, target) for each token of a batch."""
    source, target = batch["net_input"]["src_tokens"], batch["target"]
    assert torch.equal(source == PAD, target == PAD)
    assert batch["net_input"]["src_lengths"].tolist() == (target != PAD).sum(dim=1).tolist()
    assert batch["ntokens"] == (target != PAD).sum()
    real = target != PAD
    return list(zip(source[real].tolist(), target[real].tolist()))


layouts = st.tuples(st.integers(1, 6), st.integers(1, 20), st.integers(1, 3), st.integers(1, 3))


def whole_epoch(data):
    """Makes runs with drawn layouts; all but the last stop in the middle of the epoch."""
    tokens = data.draw(st.integers(1, 300), label="tokens")
    fitting = layouts.filter(lambda layout: layout[0] * layout[2] * layout[3] <= tokens)
    stream, state, read = Numbers(tokens), None, []
    for run in range(data.draw(st.integers(1, 5), label="runs"), 0, -1):
        layout = data.draw(fitting, label="layout")
        made = processes(stream, layout, state)
        passes = [batches.next_epoch_itr() for batches in made]
        first, total, micro_batches = passes[0].n, len(passes[0]), layout[2]
        assert {(batches.n, len(batches)) for batches in passes} == {(first, total)}
        # fairseq reads as many batches in each update as there are micro-batches.
        updates = (total - first) // micro_batches
        assert updates * micro_batches == total - first > 0 and first % micro_batches == 0
        if state is not None:
            assert first > 0
        if run > 1 and updates > 1:
            updates = data.draw(st.integers(1, updates - 1), label="updates")
        for batches in passes:
            for _ in range(updates * micro_batches):
                read += pairs(next(batches))
        assert made[0].iterations_in_epoch == first + updates * micro_batches
        if made[0].end_of_epoch():
            break
        state = made[0].state_dict()
        assert all(batches.state_dict() == state for batches in made)
    assert sorted(read) == [(EOS if n == 0 else n + 3, n + 4) for n in range(tokens)]
    # The next epoch reads everything again in rows of the whole text.
    assert all(batches.end_of_epoch() for batches in made)
    again = [batch for batches in made for batch in batches.next_epoch_itr()]
    assert sorted(pair for batch in again for pair in pairs(batch)) == sorted(read) and made[0].epoch == 2


def test_every_token_is_read_once_in_any_rows(long):
    fuzz(whole_epoch, examples=200, long=long, data=st.data())


def same_number_of_rows(tokens, rows, micro_batches, num_shards, block, done, other):
    total = rows * micro_batches * num_shards
    if total > tokens:
        return
    begun = BlockDataset(
        TextCorpus(Numbers(tokens), eos=EOS),
        rows=rows,
        block=block,
        micro_batches=micro_batches,
        shard_id=0,
        num_shards=num_shards,
    )
    done %= begun.num_blocks
    rest = BlockDataset(
        TextCorpus(Numbers(tokens), eos=EOS), rows=1, block=other, micro_batches=1, shard_id=0, num_shards=total,
        intervals=begun.unread(done * micro_batches),
    )  # fmt: skip
    for row in range(total):
        left = range(begun.row_borders[row] + done * block, begun.row_borders[row + 1])
        (begin, end) = rest.row_borders[row : row + 2]
        assert [n for part in rest._in_corpus(begin, end) for n in range(*part)] == list(left)


def test_the_same_number_of_rows_keeps_the_rows(long):
    """Blocks, processes and micro-batches may differ."""
    small = st.integers(1, 6)
    fuzz(
        same_number_of_rows, examples=200, long=long, tokens=st.integers(1, 500), rows=small, micro_batches=small,
        num_shards=small, block=st.integers(1, 20), done=st.integers(0, 500), other=st.integers(1, 20),
    )  # fmt: skip


def stopped(layout, updates, tokens=90, **options):
    """Returns the state after some updates."""
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
def test_new_rows_remember_the_text_before_them(caplog, arch):
    """The memory equals that of reading each row's own past alone."""
    torch.manual_seed(0)
    size = ["--decoder-layers", "2", "--decoder-embed-dim", "8", "--decoder-ffn-embed-dim", "8"]
    model = build(
        *size, "--decoder-attention-heads", "2", "--dropout", "0", "--position-range", "8", *LONG[arch], arch=arch
    ).decoder.model
    model.train()
    block = 8
    reread = -(-model.stack.max_age // block) * block
    (batches,) = processes(Numbers(90), (3, block, 2, 1), stopped((2, 5, 1, 1), updates=3))
    for batch in itertools.islice(batches.next_epoch_itr(), 2):
        memory = batch["net_input"]["memory"].load(model)
        for row, first in enumerate(batch["net_input"]["src_tokens"][:, 0].tolist()):
            # Number of the first predicted token; each of the two old rows has 45 tokens, 15 of them read.
            start = first - 3
            assert start >= 15
            text = torch.tensor([[EOS, *range(FIRST, 100)][max(0, start - reread) : start]])
            # Blocks may be cut in any way, but the groups of a compressive memory are counted from the first token that
            # is read.
            skipped = memory.layers[0].tokens_read[row] - text.size(1)
            alone = model.stack.empty_memory(1, tokens_read=skipped)
            for part in text.split(5, dim=1):
                alone = model.read(part, alone).memory
            for layer, other in zip(memory.layers, alone.layers):
                # The slots of compressed states depend on the blocks.
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
def test_inputs_before_a_place_in_a_row(offset, count):
    """Before a row of the unread text stands its own text, from several intervals, and before that the corpus."""
    rest = BlockDataset(
        TextCorpus(Numbers(90), eos=EOS), rows=2, block=5, micro_batches=2, shard_id=0, num_shards=1,
        intervals=[(7, 20), (31, 40), (50, 80)],
    )  # fmt: skip
    text = [*range(7, 20), *range(31, 40), *range(50, 80)]
    for micro_batch in range(2):
        found = rest.inputs_before(micro_batch, offset, count).tolist()
        for row, inputs in zip((2 * micro_batch, 2 * micro_batch + 1), found):
            begin = rest.row_borders[row]
            places = [*range(text[begin]), *text[begin : begin + offset]][-count:]
            expected = [EOS if place == 0 else place - 1 + FIRST for place in places]
            assert inputs == [PAD] * (count - len(expected)) + expected
        assert rest.num_tokens_before(micro_batch, offset) == offset + max(
            text[rest.row_borders[row]] for row in (2 * micro_batch, 2 * micro_batch + 1)
        )


def test_progress_in_the_epoch_continues(caplog):
    """With 30 of 90 tokens read, progress is two of six blocks of fifteen tokens."""
    caplog.set_level("INFO")
    (batches,) = processes(Numbers(90), (3, 5, 1, 1), stopped((2, 5, 1, 1), updates=3))
    epoch = batches.next_epoch_itr()
    assert (epoch.n, len(epoch)) == (2, 6)
    assert "epoch 1 goes on in other rows (rows 2 where this run has 3): 60 of its 90 tokens are left" in caplog.text


def test_more_rows_than_unread_tokens():
    state = stopped((1, 10, 1, 1), updates=8)
    (batches,) = processes(Numbers(90), (30, 10, 2, 1), state)
    read = [pair for batch in batches.next_epoch_itr() for pair in pairs(batch)]
    assert sorted(target for _, target in read) == list(range(80 + FIRST, 90 + FIRST))


@pytest.mark.parametrize(
    "layout, other, updates",
    [
        # Only the last of three blocks is unread, and it is dropped.
        ((3, 10, 1, 1), (3, 10, 1, 1), 2),
        ((3, 10, 1, 1), (1, 40, 1, 1), 2),
        ((2, 10, 2, 1), (2, 10, 2, 1), 2),
        ((2, 10, 1, 1), (3, 10, 2, 1), 4),
    ],
)
def test_no_update_remains(layout, other, updates):
    (batches,) = processes(Numbers(90), other, stopped(layout, updates), skip_remainder_batch=True)
    assert batches.has_no_update
    (batches,) = processes(Numbers(90), other, stopped(layout, updates))
    assert not batches.has_no_update


@pytest.mark.parametrize("stream", [Numbers(91), Numbers(90, first=5)], ids=["longer", "other-words"])
@pytest.mark.parametrize("layout", [(2, 5, 1, 1), (3, 5, 1, 1)], ids=["same-rows", "other-rows"])
def test_another_text(stream, layout):
    with pytest.raises(
        ValueError, match=r"in the middle of epoch 1 over another text \(90 tokens\) than numbers .*--reset-dataloader"
    ):
        processes(stream, layout, stopped((2, 5, 1, 1), updates=3))


def test_a_state_without_rows():
    """It counts batches of unknown rows."""
    state = {"epoch": 1, "iterations_in_epoch": 8, "shuffle": False, "version": 2}
    (batches,) = processes(Numbers(90), (2, 5, 1, 1), state)
    assert batches.next_epoch_itr().n == 8
    with pytest.raises(
        ValueError, match=r"saved after 8 batches of an epoch, and this run has 5 in all: .* --reset-dataloader"
    ):
        processes(Numbers(90), (4, 5, 1, 1), state)
