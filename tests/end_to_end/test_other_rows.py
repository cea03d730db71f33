"""``fairseq-train`` resumed in the middle of an epoch with other rows, blocks, micro-batches or processes.

The text goes on where it was left.
"""

import sys

import commands
import numpy as np
import processes
import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.data.indexed_dataset import MMapIndexedDatasetBuilder
from fairseq_cli import train as train_command

from fairseq_expire.criterions.expire_span_loss import ExpireSpanLoss

TOKENS, EOS, FIRST = 643, 2, 4


def write(folder, tokens):
    """Writes a corpus whose tokens all differ, so that a token tells its place."""
    folder.mkdir()
    (folder / "dict.txt").write_text("".join(f"w{number} 1\n" for number in range(TOKENS)))
    builder = MMapIndexedDatasetBuilder(str(folder / "train.bin"), dtype=np.uint16)
    builder.add_item(torch.as_tensor(tokens))
    builder.finalize(str(folder / "train.idx"))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("text") / "data", range(FIRST, TOKENS + FIRST))


@pytest.fixture
def train(monkeypatch, tmp_path):
    """Runs ``fairseq-train`` in this process up to a number of updates. Returns (input, target) of each token read."""

    def call(data, *options, updates):
        read = []
        # State that a new process would not have.
        for function in (train_command.should_stop_early, checkpoint_utils.save_checkpoint):
            for name in {"best", "num_runs"} & set(vars(function)):
                delattr(function, name)
        forward = ExpireSpanLoss.forward

        def noted(self, model, sample, reduce=True):
            real = sample["target"] != self.padding_idx
            source = sample["net_input"]["src_tokens"]
            read.extend(zip(source[real].tolist(), sample["target"][real].tolist()))
            return forward(self, model, sample, reduce)

        arguments = processes.options(
            data, "--max-update", updates, "--save-dir", tmp_path / "save", "--tokens-per-sample", "16", *options,
        )  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(ExpireSpanLoss, "forward", noted)
            patch.setattr(sys, "argv", ["fairseq-train", *arguments])
            train_command.cli_main()
        return read

    return call


ALL = [(EOS if number == 0 else number + FIRST - 1, number + FIRST) for number in range(TOKENS)]
# Four rows of 160 or 161 tokens make eleven updates an epoch. The last has a single token in three of the rows.
BEGUN = ["--batch-size", "4"]
LONG_BLOCKS = ["--batch-size", "4", "--tokens-per-sample", "100"]
CHANGES = {
    "more-rows": (BEGUN, 4, ["--batch-size", "7"]),
    "more-rows-late": (BEGUN, 8, ["--batch-size", "16"]),
    "fewer-rows": (BEGUN, 7, ["--batch-size", "1"]),
    "longer-blocks": (BEGUN, 9, LONG_BLOCKS),
    "shorter-blocks": (LONG_BLOCKS, 1, ["--batch-size", "4", "--tokens-per-sample", "3"]),
    "groups": (BEGUN, 6, ["--batch-size", "2", "--update-freq", "3"]),
    "other-groups": ([*BEGUN, "--update-freq", "2"], 3, ["--batch-size", "3"]),
    "more-rows-than-tokens": (BEGUN, 10, ["--batch-size", "64"]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_token_of_the_epoch_is_read_once(data, train, caplog, change):
    begun, updates, other = CHANGES[change]
    read = train(data, *begun, updates=updates)
    left = TOKENS - len(read)
    assert 0 < left < TOKENS
    caplog.clear()
    caplog.set_level("INFO")
    read += train(data, *other, "--max-epoch", "1", updates=1000)
    assert sorted(read) == ALL
    (line,) = [line for line in caplog.messages if line.startswith("epoch 1 goes on in other rows")]
    assert line.endswith(f": {left} of its {TOKENS} tokens are left")
    assert "checksum" not in caplog.text and "mismatch" not in caplog.text
    # The next epoch is a whole one.
    assert sorted(train(data, *other, "--max-epoch", "2", updates=1000)) == ALL


def test_several_changes_in_a_row(data, train, tmp_path):
    """A run that goes on in the same rows after them continues with its memory files."""
    read = train(data, *BEGUN, updates=3)
    read += train(data, "--batch-size", "6", "--tokens-per-sample", "10", updates=5)
    read += train(data, "--batch-size", "6", "--tokens-per-sample", "10", updates=7)
    read += train(data, "--batch-size", "3", "--update-freq", "2", updates=8)
    read += train(data, "--batch-size", "1", "--max-epoch", "1", updates=1000)
    assert sorted(read) == ALL


def test_the_same_rows_after_a_change_go_on_bit_for_bit(data, train, tmp_path, caplog):
    def weights():
        return torch.load(tmp_path / "save" / "checkpoint_last.pt")["model"]

    last = ["--restore-file", tmp_path / "begun.pt"]
    train(data, *BEGUN, updates=3)
    (tmp_path / "save" / "checkpoint_last.pt").rename(tmp_path / "begun.pt")
    other = ["--batch-size", "6", "--dropout", "0.1"]
    read = train(data, *other, *last, updates=7)
    whole = weights()
    (tmp_path / "save" / "checkpoint_last.pt").unlink()
    again = train(data, *other, *last, updates=5)
    caplog.clear()
    again += train(data, *other, updates=7)
    assert again == read
    assert all(torch.equal(whole[name], value) for name, value in weights().items())
    assert "made again" not in caplog.text


@pytest.mark.parametrize("block", [16, 300], ids=["same", "other"])
def test_a_rest_that_is_to_be_left_out(data, train, caplog, block):
    """Training goes on with the next epoch, whose last block is also left out."""
    caplog.set_level("INFO")
    train(data, *BEGUN, updates=10)
    options = ["--batch-size", "2", "--tokens-per-sample", block] if block == 300 else BEGUN
    read = train(data, *options, "--skip-remainder-batch", "--max-epoch", "2", updates=1000)
    assert "no update is left of epoch 1" in caplog.text
    starts, length = ([0, 321], 300) if block == 300 else ([0, 160, 321, 482], 160)
    assert sorted(read) == [pair for start in starts for pair in ALL[start : start + length]]


def test_another_text(data, train, tmp_path):
    other = write(tmp_path / "other", range(TOKENS + FIRST - 1, FIRST - 1, -1))
    train(data, *BEGUN, updates=3)
    with pytest.raises(ValueError, match=r"in the middle of epoch 1 over another text .* --reset-dataloader"):
        train(other, *BEGUN, updates=5)
    assert len(train(other, *BEGUN, "--reset-dataloader", updates=4)) == 4 * 16
    # At the end of an epoch, nothing is left of the text that could differ.
    train(data, *BEGUN, "--reset-dataloader", "--max-epoch", "1", updates=1000)
    assert len(train(other, *BEGUN, "--max-epoch", "2", updates=1000)) == TOKENS


def test_another_number_of_processes(data, tmp_path):
    """One process, then two, then one read every word of the epoch once."""
    folder, words = tmp_path / "runs", []
    for count, options in (
        (1, [*BEGUN, "--max-update", "4"]),
        (2, ["--batch-size", "2", "--max-update", "6"]),
        (2, ["--batch-size", "3", "--update-freq", "2", "--max-update", "7"]),
        (1, ["--batch-size", "5", "--max-epoch", "1", "--max-update", "1000"]),
    ):
        given = processes.options(data, "--tokens-per-sample", "16", *options)
        output = processes.train(folder, {"run": given}, count=count)["run"]
        words += [line["wpb"] for line in commands.logged(output, "train_inner")]
        if count == 2:
            assert "mismatch" not in (folder / "1.log").read_text()
    assert sum(words) == TOKENS
