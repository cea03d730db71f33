"""A training run that is stopped and resumed has the losses and weights of one that is not stopped, bit for bit.

Here it is stopped at critical points, in this process. test_kills.py kills processes at random moments.
"""

import json
import logging
import re
import shutil
import sys
import types

import commands
import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.data.indexed_dataset import MMapIndexedDatasetBuilder
from fairseq.file_io import PathManager
from fairseq.logging import progress_bar
from fairseq_cli import train as train_command

from fairseq_expire.criterions.expire_span_loss import ExpireSpanLoss
from fairseq_expire.streaming import memory_files

# An epoch has ten blocks of eight rows.
ROWS, BLOCK, STEPS = 8, 16, 10
ARCHS = [*commands.SPANS, "transformer_xl_lm"]
RANDOM = ["--dropout", "0.2", "--attention-dropout", "0.1"]


class Killed(BaseException):
    """An exception that no code catches."""


@pytest.fixture(scope="module")
def data(data_bin, tmp_path_factory):
    """A data-bin with the beginning of the shared data, whose epochs take a second."""
    folder = tmp_path_factory.mktemp("short")
    shutil.copy(data_bin / "dict.txt", folder)
    text = torch.from_numpy(np.fromfile(data_bin / "train.bin", dtype=np.uint16).astype(np.int64))
    for split, tokens in {"train": ROWS * BLOCK * STEPS, "valid": 100}.items():
        builder = MMapIndexedDatasetBuilder(str(folder / f"{split}.bin"), dtype=np.uint16)
        builder.add_item(text[: tokens - 3])
        builder.finalize(str(folder / f"{split}.idx"))
    return folder


@pytest.fixture
def train(data, monkeypatch):
    """Runs ``fairseq-train`` in this process until it ends, or until batch ``killed_in``.

    Returns:
        the unrounded loss of every batch.
    """

    def call(save_dir, *options, arch="expire_span_lm", updates=2 * STEPS, killed_in=None, validation=False):
        losses = []
        # State that a new process would not have.
        for function in (train_command.should_stop_early, checkpoint_utils.save_checkpoint):
            for name in {"best", "num_runs"} & set(vars(function)):
                delattr(function, name)
        forward = ExpireSpanLoss.forward

        def noted(self, model, sample, reduce=True):
            if torch.is_grad_enabled() and len(losses) == killed_in:
                raise Killed
            result = forward(self, model, sample, reduce)
            if torch.is_grad_enabled():
                losses.append(result[0].item())
            return result

        spans = commands.SPANS.get(arch, ["--max-span", "64"])
        shortening = ["--span-shortening"] if arch == "expire_span_lm" else []
        arguments = [
            "fairseq-train", data, "--user-dir", commands.USER_DIR, "--task", "memory_caching_lm", "--arch", arch,
            *commands.MODEL, *RANDOM, *spans, *shortening, "--criterion", "expire_span_loss",
            "--tokens-per-sample", BLOCK, "--position-range", BLOCK,
            "--batch-size", ROWS, "--optimizer", "adam", "--lr", "0.003", "--max-update", updates, "--cpu",
            "--save-dir", save_dir, "--num-workers", "0", "--save-interval-updates", "3", "--log-format", "json",
            *([] if validation else ["--disable-validation"]), *options,
        ]  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(ExpireSpanLoss, "forward", noted)
            patch.setattr(sys, "argv", [str(argument) for argument in arguments])
            try:
                train_command.cli_main()
            except Killed:
                assert killed_in in (None, len(losses))
        return losses

    return call


def weights(folder):
    return torch.load(folder / "checkpoint_last.pt")["model"]


def assert_same_weights(one, other):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def memories(folder):
    """The sets of memory files in a folder."""
    return {memory_files.name_of(path) for path in folder.glob("memory_*")}


def memory_of(checkpoint):
    return torch.load(checkpoint)["extra_state"]["MemoryCachingLMTask"]["memory"]


@pytest.fixture(scope="module")
def finished():
    """Losses and folders of runs that were not stopped, by their options."""
    return {}


@pytest.fixture
def whole(train, finished, tmp_path_factory):
    """Losses and folder of a run that was not stopped."""

    def call(*options, **settings):
        key = (options, *settings.items())
        if key not in finished:
            folder = tmp_path_factory.mktemp("whole")
            finished[key] = train(folder, *options, **settings), folder
        return finished[key]

    return call


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory):
    return tmp_path_factory.mktemp("stopped")


@pytest.fixture
def stopped(train, stopped_once, tmp_path):
    """Folder of a run killed in update 9, whose last checkpoint is that of update 6."""
    if not any(stopped_once.iterdir()):
        train(stopped_once, killed_in=8)
    return shutil.copytree(stopped_once, tmp_path / "stopped")


@pytest.mark.parametrize("arch", ARCHS)
def test_goes_on_in_the_middle_of_an_epoch(train, whole, tmp_path, arch):
    losses, folder = whole(arch=arch)
    assert len(losses) == 2 * STEPS
    # The last checkpoints are those of update 6 and, in the next epoch, 15.
    assert train(tmp_path, arch=arch, killed_in=8) == losses[:8]
    assert train(tmp_path, arch=arch, killed_in=11) == losses[6:17]
    assert train(tmp_path, arch=arch) == losses[15:]
    assert_same_weights(tmp_path, folder)


def test_goes_on_at_the_start_of_an_epoch(train, whole, tmp_path):
    losses, folder = whole(arch="expire_span_lm")
    train(tmp_path, killed_in=STEPS)
    assert memory_of(tmp_path / "checkpoint_last.pt") is None
    assert train(tmp_path) == losses[STEPS:]
    assert_same_weights(tmp_path, folder)


@pytest.mark.parametrize(
    "options",
    [
        ["--update-freq", "2", "--batch-size", "4"],
        ["--tokens-per-sample", "15", "--skip-remainder-batch"],
    ],
    ids=lambda options: "".join(options[:2]),
)
def test_whatever_the_batches(train, whole, tmp_path, options):
    losses, folder = whole(*options)
    updates = 2 if "--update-freq" in options else 1
    train(tmp_path, *options, killed_in=8 * updates)
    assert train(tmp_path, *options) == losses[6 * updates :]
    assert_same_weights(tmp_path, folder)


def test_killed_between_the_memory_and_its_checkpoint(train, whole, tmp_path, monkeypatch):
    losses, folder = whole(arch="expire_span_lm")
    save = checkpoint_utils.torch_persistent_save

    def half(state, filename, async_write):
        if state["optimizer_history"][-1]["num_updates"] < 6:
            return save(state, filename, async_write)
        (tmp_path / "checkpoint_1_6.pt.unfinished").write_bytes(b"PK")
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_utils, "torch_persistent_save", half)
        assert train(tmp_path) == losses[:6]
    assert len(memories(tmp_path)) == 2
    assert memory_of(tmp_path / "checkpoint_last.pt") in memories(tmp_path)
    assert train(tmp_path) == losses[3:]
    assert_same_weights(tmp_path, folder)
    assert not list(tmp_path.glob("*.unfinished"))


def test_killed_while_the_memory_is_written(train, whole, tmp_path, monkeypatch):
    losses, folder = whole(arch="expire_span_lm")
    save = torch.save

    def half(state, file):
        if "memories" not in state or state["layout"]["batches read"] < 6:
            return save(state, file)
        file.write(b"PK")
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", half)
        assert train(tmp_path) == losses[:6]
    assert list(tmp_path.glob("memory_6_*.unfinished"))
    assert train(tmp_path) == losses[3:]
    assert_same_weights(tmp_path, folder)
    assert not list(tmp_path.glob("*.unfinished"))


def test_killed_while_a_checkpoint_is_copied(train, whole, tmp_path, monkeypatch):
    losses, folder = whole(arch="expire_span_lm")
    copy = PathManager.copy

    def half(source, target, overwrite=False):
        if "_1_6" not in source:
            return copy(source, target, overwrite=overwrite)
        with open(source, "rb") as whole, open(target, "wb") as part:
            part.write(whole.read(10000))
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(PathManager, "copy", staticmethod(half))
        assert train(tmp_path) == losses[:6]
    # The checkpoint of update 6 is complete, but its copy checkpoint_last.pt is not.
    assert (tmp_path / "checkpoint_1_6.pt").exists()
    assert train(tmp_path) == losses[3:]
    assert_same_weights(tmp_path, folder)


def test_a_last_checkpoint_that_was_cut_short_is_not_loaded(train, whole, stopped, caplog):
    losses, folder = whole(arch="expire_span_lm")
    last, best = stopped / "checkpoint_last.pt", stopped / "checkpoint_best.pt"
    last.write_bytes(last.read_bytes()[:20000])
    shutil.copy(last, best)
    with pytest.raises(ValueError, match=r"best.pt is cut short \(20000 bytes .*_1_6.pt \(6 updates"):
        train(stopped, "--restore-file", best)
    assert train(stopped) == losses[6:]
    assert "checkpoint_last.pt is cut short (20000 bytes are left): going on from" in caplog.text
    assert_same_weights(stopped, folder)


def test_nothing_complete_is_left(train, tmp_path):
    (tmp_path / "checkpoint_last.pt").write_bytes(b"PK\x03\x04" + bytes(1000))
    with pytest.raises(ValueError, match=r"checkpoint_last.pt is cut short .* delete it to start anew"):
        train(tmp_path)


def test_memory_files_go_with_their_checkpoints(train, tmp_path):
    train(tmp_path, "--keep-interval-updates", "1", killed_in=8)
    kept = memory_of(tmp_path / "checkpoint_1_6.pt")
    assert memories(tmp_path) == {kept} and kept.startswith("memory_6_")
    shutil.copy(tmp_path / "checkpoint_1_6.pt", tmp_path / "mine.pt")
    train(tmp_path, "--keep-interval-updates", "1", killed_in=5)
    assert memories(tmp_path) == {kept, memory_of(tmp_path / "checkpoint_1_9.pt")}
    (tmp_path / "mine.pt").unlink()
    train(tmp_path, "--keep-interval-updates", "1")
    # At the end of an epoch, no memory is saved.
    assert memories(tmp_path) == {memory_of(tmp_path / "checkpoint_2_18.pt")}


def lost(caplog):
    """Number of tokens read again, and the reason, from the one line that tells them."""
    lines = [
        re.match(r"the memory is made again .* last (\d+) tokens of each row: (.*)", line) for line in caplog.messages
    ]
    (found,) = filter(None, lines)
    return int(found[1]), found[2]


# A single layer remembers embeddings. While weights do not change, reading the same text again restores the memory.
STILL = ["--decoder-layers", "1", "--lr", "1e-30", "--dropout", "0", "--attention-dropout", "0"]
SHORT = {
    "expire_span_lm": (["--max-span", "20", "--span-ramp", "8", "--span-init", "10"], 28),
    "adaptive_span_lm": (["--max-span", "40", "--span-init", "30"], 40),
    "compressive_transformer_lm": (["--max-span", "10", "--compressed-size", "5", "--compression-rate", "3"], 25),
    "transformer_xl_lm": (["--max-span", "20"], 20),
}


@pytest.mark.parametrize("arch", ARCHS)
def test_a_memory_that_is_missing_is_read_again(train, whole, tmp_path, caplog, arch):
    spans, reach = SHORT[arch]
    options = [*STILL, *spans, "--update-freq", "2", "--batch-size", "4"]
    losses, _ = whole(*options, arch=arch, updates=STEPS)
    train(tmp_path, *options, arch=arch, killed_in=14)
    for path in tmp_path.glob("memory_6_*"):
        path.unlink()
    assert train(tmp_path, *options, arch=arch, updates=STEPS) == pytest.approx(losses[12:], rel=1e-5)
    read, reason = lost(caplog)
    assert read == -(-reach // BLOCK) * BLOCK
    assert reason.startswith(str(tmp_path / "memory_6_")) and reason.endswith(".0-of-1.pt is missing")


def test_a_memory_that_is_damaged(train, stopped, caplog):
    (path,) = stopped.glob("memory_6_*")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert len(train(stopped, updates=7)) == 1
    # All the text before is six blocks.
    assert lost(caplog) == (6 * BLOCK, f"{path} is damaged")


@pytest.mark.parametrize(
    "options, reason",
    [
        (["--batch-size", "4"], "rows 8 where this run has 4"),
        (["--tokens-per-sample", "8"], "tokens in a block 16 where this run has 8"),
        (
            ["--update-freq", "2", "--batch-size", "4"],
            "rows 8 where this run has 4, micro-batches 1 where this run has 2",
        ),
    ],
    ids=lambda value: "".join(value[:2]) if isinstance(value, list) else "",
)
def test_a_memory_of_another_layout(train, stopped, caplog, options, reason):
    train(stopped, *options, updates=7)
    assert lost(caplog)[1].startswith(f"the memory beside the checkpoint is of another layout: {reason}")


def test_without_saved_memory(train, tmp_path, caplog):
    train(tmp_path, "--no-save-memory", killed_in=8)
    assert not memories(tmp_path)
    train(tmp_path, updates=7)
    assert lost(caplog) == (6 * BLOCK, "none was saved with the checkpoint")


def test_from_a_checkpoint_elsewhere(train, whole, stopped, tmp_path):
    losses, folder = whole(arch="expire_span_lm")
    assert train(tmp_path / "other", "--restore-file", stopped / "checkpoint_1_3.pt") == losses[3:]
    assert_same_weights(tmp_path / "other", folder)


@pytest.mark.parametrize("option", ["--reset-dataloader", "--finetune-from-model"])
def test_from_the_start_of_the_text_no_memory_is_needed(train, stopped, tmp_path, caplog, option):
    for path in stopped.glob("memory_*"):
        path.unlink()
    if option == "--reset-dataloader":
        assert len(train(stopped, option, updates=7)) == 1
    else:
        assert len(train(tmp_path / "other", option, stopped / "checkpoint_last.pt", updates=2)) == 2
    assert "memory" not in " ".join(
        record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING
    )


def test_what_does_not_change_the_model_may_change(train, stopped):
    options = ["--dropout", "0.3", "--span-limit", "9", "--span-init", "3", "--checkpoint-activations"]
    assert len(train(stopped, *options, updates=8)) == 2


@pytest.mark.parametrize("option", ["--finetune-from-model", "--restore-file"])
def test_weights_alone_go_into_other_spans(train, stopped, tmp_path, caplog, option):
    """The last ``--max-span`` that is given wins."""
    caplog.set_level(logging.INFO)
    resets = ["--reset-optimizer", "--reset-lr-scheduler", "--reset-meters", "--reset-dataloader"]
    given = [
        option,
        stopped / "checkpoint_last.pt",
        *(resets if option == "--restore-file" else []),
        "--max-span",
        "128",
    ]
    assert len(train(tmp_path / "other", *given, updates=2)) == 2
    assert "checkpoint_last.pt were trained with --max-span 256, here --max-span 128" in caplog.text


def test_a_run_that_is_over_stays_so(train, whole, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    _, folder = whole(arch="expire_span_lm")
    again = shutil.copytree(folder, tmp_path / "again")
    assert train(again) == []
    assert "the checkpoint is the last of its run: it has 20 updates, --max-update is 20" in caplog.text
    assert len(train(again, updates=21)) == 1


def test_looking_for_a_metric_changes_nothing(train, tmp_path):
    """Training stays the same bit for bit, also when it is resumed in the middle of an epoch."""
    folders = [tmp_path / name for name in ("loss", "other")]
    losses = []
    for folder, metric in zip(folders, ("loss", "memory_size")):
        given = ["--best-checkpoint-metric", metric, "--maximize-best-checkpoint-metric"]
        losses.append([train(folder, *given, validation=True, killed_in=8), train(folder, *given, validation=True)])
        assert (folder / "checkpoint_best.pt").exists()
    assert losses[0] == losses[1] and len(losses[0][1]) == 2 * STEPS - 6
    assert_same_weights(*folders)
    one, other = (torch.load(folder / "checkpoint_last.pt")["extra_state"]["metrics"] for folder in folders)
    assert one.keys() == other.keys()
    for name in one:
        assert [meter[:3] for meter in one[name]] == [meter[:3] for meter in other[name]]


def test_patience_is_counted_on(train, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    options = ["--patience", "3", "--lr", "1e-30"]
    # A validation follows each third update, and none is better than the first.
    validated = train(tmp_path / "whole", *options, validation=True)
    assert len(validated) == STEPS
    assert train(tmp_path / "again", *options, validation=True, killed_in=7) == validated[:7]
    assert train(tmp_path / "again", *options, validation=True) == validated[6:]
    assert train(tmp_path / "again", *options, validation=True) == []
    assert "the last 3 validations were no better, --patience is 3" in caplog.text


class Lines:
    """Collects the lines of ``--log-interval``, in place of fairseq's logger, which other tests may have changed."""

    name = "progress_bar"

    def __init__(self):
        self.found = []

    def info(self, message):
        if self.name == "train_inner":
            line = json.loads(message)
            self.found.append({name: line[name] for name in ("num_updates", "loss", "span_mean", "memory_size")})


def test_the_log_goes_on_across_the_end_of_an_epoch(train, tmp_path, monkeypatch):
    """A line of ``--log-interval`` covers the same updates as without a stop."""

    def lines(folder, **settings):
        monkeypatch.setattr(progress_bar, "logger", Lines())
        train(tmp_path / folder, "--log-interval", "8", **settings)
        return progress_bar.logger.found

    whole = lines("whole")
    again = lines("again", killed_in=STEPS) + lines("again")
    assert len(whole) == 2 and again == whole


def test_writing_asynchronously_is_refused(train, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "iopath", types.ModuleType("iopath"))
    with pytest.raises(ValueError, match=r"--write-checkpoints-asynchronously .* --no-save-memory"):
        train(tmp_path, "--write-checkpoints-asynchronously")
