"""Blocks of streams with labels, and of texts with answers, against a plain reading of the arrays."""

import labelled
import numpy as np
import pytest
import torch

from fairseq_expire.streaming.blocks import BlockDataset
from fairseq_expire.streaming.corpus import LabelledCorpus, TextCorpus, read_answers
from fairseq_expire.streaming.token_stream import TokenStream

PAD, EOS, SYMBOLS = 1, 2, 50
LAYOUTS = [(1, 1, 1, 1), (1, 7, 1, 1), (1, 500, 1, 1), (3, 4, 1, 1), (2, 5, 2, 1), (3, 6, 1, 3), (2, 3, 2, 2)]


def stream(prefix, items, **options):
    labelled.write_split(prefix, items)
    return TokenStream([str(prefix)], num_symbols=SYMBOLS, pad=PAD, **options)


@pytest.fixture
def streams(tmp_path):
    """103 tokens and labels in two items, long stretches without a label that counts, and one </s> label."""
    random = np.random.default_rng(3)
    inputs, labels = random.integers(4, SYMBOLS, (2, 103))
    labels[random.random(103) < 0.4] = PAD
    labels[20:60], labels[70] = PAD, EOS
    return inputs, labels, tmp_path


def corpus_of(inputs, labels, folder, cut=40):
    parts = (
        stream(folder / "input0" / "train", np.split(inputs, [cut])),
        stream(folder / "label" / "train", np.split(labels, [cut]), keep_padding=True),
    )
    return LabelledCorpus(*parts, eos=EOS)


def all_blocks(corpus, rows, block, micro_batches, num_shards, intervals=None):
    for shard in range(num_shards):
        blocks = BlockDataset(
            corpus,
            rows=rows,
            block=block,
            micro_batches=micro_batches,
            shard_id=shard,
            num_shards=num_shards,
            intervals=intervals,
        )
        yield from (blocks[number] for number in range(len(blocks)))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_labels_stand_where_they_count(streams, layout):
    inputs, labels, folder = streams
    corpus = corpus_of(inputs, labels, folder)
    counted = (labels != PAD) & (labels != EOS)
    assert corpus.labels_per_token == counted.sum() / 103
    rows, _, micro_batches, num_shards = layout
    total = rows * micro_batches * num_shards
    borders = [103 * row // total for row in range(total + 1)]
    seen = np.zeros(103, dtype=int)
    for batch in all_blocks(corpus, *layout):
        net_input, target = batch["net_input"], batch["target"]
        assert target.shape == net_input["positions"].shape == batch["answers"].shape and target.size(1) >= 1
        assert batch["ntokens"] == int(net_input["src_lengths"].sum())
        assert target.size(1) == max(1, int((target != PAD).sum(1).max()))
        for line, row in enumerate(batch["id"].tolist()):
            start, length = borders[row] + batch["offset"], int(net_input["src_lengths"][line])
            here = slice(start, start + length)
            assert net_input["src_tokens"][line, :length].tolist() == inputs[here].tolist()
            assert (net_input["src_tokens"][line, length:] == PAD).all()
            seen[here] += 1
            places = np.flatnonzero(counted[here])
            number = len(places)
            assert net_input["positions"][line].tolist() == [*places, *[0] * (target.size(1) - number)]
            assert target[line].tolist() == [*labels[here][places], *[PAD] * (target.size(1) - number)]
            flags = [
                1 + 2 * (t == 0 or not counted[t - 1]) + 4 * (t == 102 or not counted[t + 1]) for t in start + places
            ]
            assert batch["answers"][line, :number].tolist() == flags
    assert (seen == 1).all()


def test_the_rest_of_an_epoch_in_other_rows(streams):
    inputs, labels, folder = streams
    corpus = corpus_of(inputs, labels, folder)
    begun = BlockDataset(corpus, rows=3, block=4, micro_batches=1, shard_id=0, num_shards=1)
    first = [begun[number] for number in range(5)]
    rest = all_blocks(corpus, 2, 7, 1, 1, intervals=begun.unread(5))
    found = torch.cat([batch["target"][batch["target"] != PAD] for batch in [*first, *rest]])
    counted = labels[(labels != PAD) & (labels != EOS)]
    assert sorted(found.tolist()) == sorted(counted.tolist())


def test_the_inputs_before_a_block(streams):
    inputs, labels, folder = streams
    blocks = BlockDataset(corpus_of(inputs, labels, folder), rows=2, block=8, micro_batches=1, shard_id=0, num_shards=1)
    # No </s> stands in front, and nothing is shifted.
    assert blocks.inputs_before(0, 16, 20).tolist() == [
        [PAD] * 4 + inputs[start : start + 16].tolist() for start in (0, 51)
    ]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda inputs, labels: (inputs, labels[:-1]), r"has 103 tokens and .*label/train.bin has 102 labels"),
        (lambda inputs, labels: (inputs, np.full(103, PAD)), r"no label in .*label/train.bin counts"),
        (lambda inputs, labels: (inputs, labels + SYMBOLS), r"token 0 of .*label/train.bin is \d+, but dict.txt has"),
    ],
    ids=["length", "no label", "outside of the dictionary"],
)
def test_streams_that_do_not_belong_together(streams, change, message):
    inputs, labels, folder = streams
    with pytest.raises(ValueError, match=message):
        corpus_of(*change(inputs, labels), folder)


def test_other_items(streams):
    inputs, labels, folder = streams
    labels = stream(folder / "b", np.split(labels, [41]), keep_padding=True)
    with pytest.raises(ValueError, match=r"the items of .* differ, the first time in item 0"):
        LabelledCorpus(stream(folder / "a", np.split(inputs, [40])), labels, eos=EOS)


ANSWERS = [(0, 1), (5, 9), (9, 10), (30, 61), (102, 103)]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_answers_of_a_text(streams, layout):
    inputs, _, folder = streams
    np.save(folder / "train.answers.npy", np.array(ANSWERS))
    answers = read_answers(folder / "train.answers.npy", tokens=103)
    corpus = TextCorpus(stream(folder / "text", [inputs]), eos=EOS, answers=answers)
    expected = np.zeros(103, dtype=int)
    for start, stop in ANSWERS:
        expected[start:stop] |= 1
        expected[start] |= 2
        expected[stop - 1] |= 4
    rows, _, micro_batches, num_shards = layout
    total = rows * micro_batches * num_shards
    for batch in all_blocks(corpus, *layout):
        for line, row in enumerate(batch["id"].tolist()):
            start, length = 103 * row // total + batch["offset"], int(batch["net_input"]["src_lengths"][line])
            flags = batch["answers"][line]
            assert flags[:length].tolist() == expected[start : start + length].tolist() and not flags[length:].any()


@pytest.mark.parametrize(
    "content, message",
    [
        (np.zeros((3, 2)), "whole numbers"),
        (np.zeros(4, dtype=int), "whole numbers"),
        (np.array([[0, 3], [2, 5]]), "must not overlap"),
        (np.array([[4, 5], [2, 3]]), "in order"),
        (np.array([[4, 4]]), "of at least one token"),
        (np.array([[90, 104]]), "the split has 103 tokens"),
        (np.array([[-1, 4]]), "the split has 103 tokens"),
    ],
    ids=["floats", "one axis", "overlapping", "unordered", "empty", "behind the end", "before the start"],
)
def test_wrong_answers(tmp_path, content, message):
    np.save(tmp_path / "test.answers.npy", content)
    with pytest.raises(ValueError, match=f"test.answers.npy.*{message}"):
        read_answers(tmp_path / "test.answers.npy", tokens=103)


def test_no_file_of_answers_and_no_array(tmp_path):
    assert read_answers(tmp_path / "test.answers.npy", tokens=3) is None
    (tmp_path / "test.answers.npy").write_text("0 1")
    with pytest.raises(ValueError, match="is not an array of numpy"):
        read_answers(tmp_path / "test.answers.npy", tokens=3)
