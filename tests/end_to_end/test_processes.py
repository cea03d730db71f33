"""Several processes train one model: as one process with all the rows does, whatever they have to read."""

import math

import commands
import numpy as np
import processes
import pytest
import torch
from fairseq.data.indexed_dataset import MMapIndexedDatasetBuilder

CONV = ["--compression", "conv", "--compression-rate", "3"]
BANDS = "20,50,85"
ADAPTIVE = ["--adaptive-input", "--adaptive-input-cutoff", BANDS, "--adaptive-input-factor", "2",
            "--adaptive-softmax-cutoff", BANDS, "--adaptive-softmax-factor", "2"]  # fmt: skip
TIED = [*ADAPTIVE, "--tie-adaptive-weights"]
VALID = ["--validate-interval-updates", "3"]

# Name: options of two processes, and of one that has to give the same; where they train through PyTorch's DDP, it insists
# on a gradient for every parameter.
PAIRS = {
    "rows": (["--ddp-backend", "pytorch_ddp"], ["--batch-size", "8"]),
    "legacy": (["--ddp-backend", "legacy_ddp"], ["--batch-size", "8"]),
    "no_c10d": (["--ddp-backend", "no_c10d", "--optimizer", "adam", "--lr", "0.003"],
                ["--batch-size", "8", "--optimizer", "adam", "--lr", "0.003"]),
    "update-freq": (["--ddp-backend", "legacy_ddp", "--batch-size", "2", "--update-freq", "2"], ["--batch-size", "8"]),
    "update-freq-ddp": (["--batch-size", "2", "--update-freq", "2"], ["--batch-size", "2", "--update-freq", "4"]),
    "adaptive-softmax": (ADAPTIVE, ["--batch-size", "8", *ADAPTIVE]),
}  # fmt: skip
ARCHS = {"conv": ("compressive_transformer_lm", CONV), "heads": ("adaptive_span_lm", []), "fixed": ("transformer_xl_lm", [])}
# Nothing of these may leave a parameter without a gradient, in the first block or later.
DDP = {
    "free": ["--expire-loss-weight", "0", "--checkpoint-activations", "--decoder-normalize-before"],
    "one-token-blocks": ["--tokens-per-sample", "1", "--position-range", "5", "--share-decoder-input-output-embed"],
    "cross-entropy": ["--criterion", "cross_entropy", *ADAPTIVE, "--span-shortening", "--attention-dropout", "0.1"],
    "tied": TIED,
    "tied-proj": [*TIED, "--tie-adaptive-proj", "--decoder-normalize-before"],
    "found": [*ADAPTIVE, "--find-unused-parameters"],
}


@pytest.fixture(scope="module")
def short(data_bin, tmp_path_factory):
    """65 tokens of it: the last of four rows is one token longer, and with blocks of 8 only that one has a third block."""
    folder = tmp_path_factory.mktemp("short")
    (folder / "dict.txt").write_bytes((data_bin / "dict.txt").read_bytes())
    builder = MMapIndexedDatasetBuilder(str(folder / "train.bin"), dtype=np.uint16)
    builder.add_item(torch.randint(4, 80, (65,), generator=torch.Generator().manual_seed(0)))
    builder.finalize(str(folder / "train.idx"))
    return folder


@pytest.fixture(scope="module")
def runs(data_bin, short, tmp_path_factory):
    """(folder, what was printed by run) of two processes and of one."""
    folder = tmp_path_factory.mktemp("runs")
    two, one = {}, {}
    for name, (many, single) in PAIRS.items():
        two[name], one[name] = processes.options(data_bin, *many), processes.options(data_bin, *single)
    for name, (arch, given) in ARCHS.items():
        two[name] = processes.options(data_bin, *given, arch=arch)
        one[name] = processes.options(data_bin, *given, "--batch-size", "8", arch=arch)
    for name, given in DDP.items():
        two[name] = processes.options(data_bin, *given, "--max-update", "3")
    two["conv-unused"] = processes.options(data_bin, *CONV, "--criterion", "cross_entropy", arch="compressive_transformer_lm")
    two["padded"] = processes.options(short, "--batch-size", "2", "--max-epoch", "2")
    one["padded"] = processes.options(short, "--batch-size", "4", "--max-epoch", "2")
    valid = ["--max-update", "3", "--batch-size-valid"]
    two["valid"], one["valid"] = (processes.options(data_bin, *valid, rows) for rows in ("3", "6"))
    for given in (two["valid"], one["valid"]):
        given.remove("--disable-validation")
    return {
        count: (folder / str(count), processes.train(folder / str(count), of, count=count))
        for count, of in ((2, two), (1, one))
    }


def weights(runs, count, name):
    return torch.load(runs[count][0] / name / "checkpoint_last.pt", weights_only=True)["model"]


def logged(runs, count, name, tag="train_inner"):
    return commands.logged(runs[count][1][name], tag)


@pytest.mark.parametrize("name", [*PAIRS, *ARCHS, "padded"])
def test_two_processes_train_as_one_with_all_their_rows(runs, name):
    many, single = weights(runs, 2, name), weights(runs, 1, name)
    assert many.keys() == single.keys()
    for parameter, value in single.items():
        torch.testing.assert_close(many[parameter], value, rtol=1e-4, atol=2e-6, msg=lambda text: f"{parameter}: {text}")
    steps, expected = logged(runs, 2, name), logged(runs, 1, name)
    assert len(steps) == len(expected) == 6
    for step, other in zip(steps, expected):
        for key in ("loss", "nll_loss", "expire_loss", "memory_size", "memory_size_0", "memory_size_1", "span_mean", "span_max",
                    "gnorm", "wpb"):  # fmt: skip
            assert step[key] == pytest.approx(other[key], abs=2e-3, rel=1e-3), key
        # The rows of one batch, of which there are half as many in each process.
    assert len({step["span_max"] for step in steps}) > 1 or name in ARCHS
