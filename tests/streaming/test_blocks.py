"""Every token is a target exactly once, in contiguous rows, whatever the rows, blocks, micro-batches and processes."""

import logging
import pickle
import re
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from fairseq.data.indexed_dataset import MMapIndexedDataset, MMapIndexedDatasetBuilder

from fairseq_expire.streaming.blocks import BlockDataset
from fairseq_expire.streaming.corpus import TextCorpus
from fairseq_expire.streaming.token_stream import TokenStream, find_parts

PAD, EOS, UNK, SYMBOLS = 1, 2, 3, 300


def write(prefix, items, dtype=np.uint16):
    builder = MMapIndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for item in items:
        builder.add_item(torch.tensor(item, dtype=torch.int64))
    builder.finalize(f"{prefix}.idx")


@pytest.fixture
def corpus(tmp_path):
    """101 tokens, all different, in two parts and items of uneven length, one of them empty."""
    tokens = np.random.default_rng(0).permutation(SYMBOLS - 4)[:101] + 4
    write(tmp_path / "train", [tokens[:3], tokens[3:3], tokens[3:50]])
    write(tmp_path / "train1", [tokens[50:51], tokens[51:]])
    return tmp_path, tokens


def stream_of(folder, combine=True):
    return TokenStream(find_parts(str(folder), "train", combine), num_symbols=SYMBOLS, pad=PAD)


def blocks_of(stream, rows=3, block=4, micro_batches=1, shard_id=0, num_shards=1):
    return BlockDataset(
        TextCorpus(stream, eos=EOS),
        rows=rows,
        block=block,
        micro_batches=micro_batches,
        shard_id=shard_id,
        num_shards=num_shards,
    )


def test_stream_reads_across_items_and_parts(corpus):
    folder, tokens = corpus
    stream = stream_of(folder)
    assert len(stream) == 101
    for start, stop in [(0, 101), (0, 0), (2, 4), (49, 52), (50, 51), (100, 101)]:
        assert stream.read(start, stop).tolist() == tokens[start:stop].tolist()
    assert len(stream_of(folder, combine=False)) == 50
    assert pickle.loads(pickle.dumps(stream)).read(49, 52).tolist() == tokens[49:52].tolist()


LAYOUTS = [
    (rows, block, micro_batches, num_shards)
    for rows, block in [(1, 1), (1, 7), (1, 500), (3, 4), (8, 5), (13, 64), (101, 2)]
    for micro_batches, num_shards in [(1, 1), (2, 1), (1, 3), (2, 2)]
    if rows * micro_batches * num_shards <= 101
]


@pytest.mark.parametrize("rows, block, micro_batches, num_shards", LAYOUTS)
def test_every_token_is_a_target_once(corpus, rows, block, micro_batches, num_shards):
    folder, tokens = corpus
    stream = stream_of(folder)
    # The rows in their order, one after the other, are the corpus.
    targets, sources = {}, {}
    for shard_id in range(num_shards):
        dataset = blocks_of(stream, rows, block, micro_batches, shard_id, num_shards)
        for index in range(len(dataset)):
            batch = dataset[index]
            target, source = batch["target"], batch["net_input"]["src_tokens"]
            assert target.shape == source.shape and target.shape[0] == rows and target.shape[1] <= block
            assert torch.equal(target == PAD, source == PAD)
            assert batch["ntokens"] == (target != PAD).sum()
            assert batch["micro_batch"] == index % micro_batches and batch["offset"] == index // micro_batches * block
            for row, own_target, own_source in zip(batch["id"].tolist(), target, source):
                targets.setdefault(row, []).extend(own_target[own_target != PAD].tolist())
                sources.setdefault(row, []).extend(own_source[own_source != PAD].tolist())
    order = sorted(targets)
    assert len(order) == rows * micro_batches * num_shards
    assert list(chain(*(targets[row] for row in order))) == tokens.tolist()
    assert list(chain(*(sources[row] for row in order))) == [EOS] + tokens.tolist()[:-1]
    lengths = [len(targets[row]) for row in order]
    assert max(lengths) - min(lengths) <= 1


def test_more_rows_than_tokens(corpus):
    with pytest.raises(ValueError, match="101 tokens, fewer than the 120 rows"):
        blocks_of(stream_of(corpus[0]), rows=10, micro_batches=4, num_shards=3)


def test_a_missing_split(corpus):
    with pytest.raises(FileNotFoundError, match=r"no split 'valid'.*found splits: train, train1"):
        find_parts(str(corpus[0]), "valid", combine=False)


def test_tokens_outside_the_dictionary(tmp_path, monkeypatch):
    write(tmp_path / "train", [[5, 6], [7, 299, 300, 8]])
    message = "token 4 of .*train.bin is 300, but dict.txt has only 300 symbols"
    with pytest.raises(ValueError, match=message):
        stream_of(tmp_path)
    # An error further in is found when it is read.
    monkeypatch.setattr("fairseq_expire.streaming.token_stream.CHECKED_TOKENS", 3)
    monkeypatch.setattr("fairseq_expire.streaming.token_stream.CHUNK", 2)
    stream = stream_of(tmp_path)
    assert stream.read(0, 4).tolist() == [5, 6, 7, 299]
    with pytest.raises(ValueError, match=message):
        stream.read(2, 6)


@pytest.fixture
def with_padding(tmp_path, monkeypatch, caplog):
    """A stream with the word `<pad>` of fairseq-preprocess, beyond the tokens that are checked when it is opened."""
    write(tmp_path / "train", [[PAD, 5], [6, PAD, PAD], [7, PAD]] * 3)
    monkeypatch.setattr("fairseq_expire.streaming.token_stream.CHECKED_TOKENS", 0)
    caplog.set_level("WARNING")
    return stream_of(tmp_path)


READ = [UNK, 5, 6, UNK, UNK, 7, UNK] * 3


def test_padding_in_the_text_is_read_as_unknown_with_one_warning(with_padding, caplog):
    assert caplog.text == ""
    assert with_padding.read(0, 21).tolist() == READ and with_padding.read(3, 5).tolist() == [UNK, UNK]
    [record] = caplog.records
    assert re.search("token 0 of .*train.bin is the padding symbol .*: all .* are read as '<unk>'", record.getMessage())
    # A copy does not warn again.
    assert pickle.loads(pickle.dumps(with_padding)).read(0, 21).tolist() == READ and len(caplog.records) == 1


def test_padding_at_the_beginning_warns_when_the_split_is_opened(tmp_path, caplog):
    write(tmp_path / "train", [[5, 6, PAD]])
    stream_of(tmp_path)
    assert len(caplog.records) == 1 and "token 2 of" in caplog.text


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_padding_in_the_text_counts_as_tokens(with_padding, rows):
    """Lengths are those of the rows, and every token is a target."""
    dataset = blocks_of(with_padding, rows=rows, block=4)
    targets, lengths = 0, 0
    for index in range(len(dataset)):
        batch = dataset[index]
        targets += int((batch["target"] != PAD).sum())
        lengths += int(batch["net_input"]["src_lengths"].sum())
        assert batch["ntokens"] == batch["net_input"]["src_lengths"].sum() == (batch["target"] != PAD).sum()
        assert torch.equal(batch["net_input"]["src_lengths"], (batch["net_input"]["src_tokens"] != PAD).sum(1))
    assert targets == lengths == 21


def test_all_workers_warn_once(with_padding, tmp_path):
    """Two epochs with two worker processes each write to one log file."""
    handler = logging.FileHandler(tmp_path / "log")
    logging.getLogger("fairseq_expire.streaming.token_stream").addHandler(handler)
    try:
        for _ in range(2):
            loader = torch.utils.data.DataLoader(
                blocks_of(with_padding, rows=1, block=2), batch_size=1, collate_fn=BlockDataset.collate, num_workers=2,
                multiprocessing_context="fork",
            )  # fmt: skip
            assert [token for batch in loader for token in batch["target"][0].tolist()] == READ
    finally:
        logging.getLogger("fairseq_expire.streaming.token_stream").removeHandler(handler)
    assert (tmp_path / "log").read_text().count("\n") == 1


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda folder: (folder / "train.bin").write_bytes((folder / "train.bin").read_bytes()[:-1]), "has 99 bytes"),
        (lambda folder: (folder / "train.idx").write_bytes(b"TNTIDX\x00\x00" + bytes(40)), "mmap format"),
        (lambda folder: (folder / "train.idx").write_bytes(b""), "mmap format"),
        (lambda folder: (folder / "train.idx").write_bytes((folder / "train.idx").read_bytes()[:-5]), "cut short"),
    ],
)
def test_damaged_files(corpus, damage, message):
    damage(corpus[0])
    with pytest.raises(ValueError, match=message):
        stream_of(corpus[0], combine=False)


def test_an_empty_split(tmp_path):
    write(tmp_path / "train", [[]])
    with pytest.raises(ValueError, match="holds no token"):
        stream_of(tmp_path)


def test_opening_does_not_read_everything(tmp_path):
    """The split has 20 GB in a sparse file; the pages that are mapped into memory tell how much was read."""
    tokens = 10 * 2**30
    with MMapIndexedDataset.Index.writer(str(tmp_path / "train.idx"), np.uint16) as index:
        index.write([2**30] * 10)
    with open(tmp_path / "train.bin", "wb") as file:
        file.truncate(2 * tokens)
    stream = TokenStream([str(tmp_path / "train")], num_symbols=10, pad=1)
    assert len(stream) == tokens and stream.read(tokens - 3, tokens).tolist() == [0, 0, 0]
    mapped = re.search(rf"{tmp_path}/train.bin\n.*?Rss:\s+(\d+) kB", Path("/proc/self/smaps").read_text(), re.DOTALL)
    assert int(mapped.group(1)) < 200_000
