"""Several processes train one model as a single process with all the rows does."""

import re
import sys

import commands
import numpy as np
import processes
import pytest
import torch
from fairseq.data.indexed_dataset import MMapIndexedDatasetBuilder
from fairseq_cli import eval_lm, train

from fairseq_expire.fairseq_patches.processes import check_processes_are_joined

BANDS = "20,50,85"
INPUT = ["--adaptive-input", "--adaptive-input-cutoff", BANDS, "--adaptive-input-factor", "2"]
ADAPTIVE = [*INPUT, "--adaptive-softmax-cutoff", BANDS, "--adaptive-softmax-factor", "2"]
ADAM = ["--optimizer", "adam", "--lr", "0.003"]
TWO, EIGHT = ["--batch-size", "2"], ["--batch-size", "8"]

# By name: the architecture, options of two processes, and options of one process that has to give the same. Without
# --ddp-backend, they use PyTorch's DDP, which needs a gradient for every parameter.
PAIRS = {
    "rows": ("expire_span_lm", [], EIGHT),
    "legacy": ("expire_span_lm", ["--ddp-backend", "legacy_ddp", *ADAM], [*EIGHT, *ADAM]),
    "update-freq": ("expire_span_lm", ["--ddp-backend", "no_c10d", *TWO, "--update-freq", "2"], EIGHT),
    "update-freq-ddp": ("expire_span_lm", [*TWO, "--update-freq", "2"], [*TWO, "--update-freq", "4"]),
    # Adam skips a parameter without a gradient, so a cluster without words needs one in a single process, too.
    "adaptive-softmax": ("expire_span_lm", [*ADAPTIVE, *ADAM], [*EIGHT, *ADAPTIVE, *ADAM]),
    "compressive": ("compressive_transformer_lm", [], EIGHT),
    "heads": ("adaptive_span_lm", [], EIGHT),
    "fixed": ("transformer_xl_lm", [], EIGHT),
}
# With these options, too, every parameter gets a gradient, in the first block and later.
DDP = {
    "free": ["--expire-loss-weight", "0", "--checkpoint-activations", "--decoder-normalize-before"],
    "one-token-blocks": ["--tokens-per-sample", "1", "--position-range", "5", "--share-decoder-input-output-embed"],
    "tied": [*ADAPTIVE, "--tie-adaptive-weights", "--tie-adaptive-proj"],
    "found": [*ADAPTIVE, "--find-unused-parameters", "--tie-adaptive-weights"],
}
SAME = ["loss", "nll_loss", "expire_loss", "memory_size", "memory_size_0", "memory_size_1", "span_mean", "span_max",
        "gnorm", "wpb"]  # fmt: skip


@pytest.fixture(scope="module")
def short(data_bin, tmp_path_factory):
    """A text of 65 tokens. The last of four rows is one token longer: with blocks of 8, it alone has a third block."""
    folder = tmp_path_factory.mktemp("short")
    (folder / "dict.txt").write_bytes((data_bin / "dict.txt").read_bytes())
    builder = MMapIndexedDatasetBuilder(str(folder / "train.bin"), dtype=np.uint16)
    builder.add_item(torch.randint(4, 80, (65,), generator=torch.Generator().manual_seed(0)))
    builder.finalize(str(folder / "train.idx"))
    return folder


@pytest.fixture(scope="module")
def runs(data_bin, short, tmp_path_factory):
    """Folder, and output by name of the run, of two processes and of one, by number of processes."""
    folder, options = tmp_path_factory.mktemp("runs"), processes.options
    two = {name: options(data_bin, *many, arch=arch) for name, (arch, many, _) in PAIRS.items()}
    one = {name: options(data_bin, *single, arch=arch) for name, (arch, _, single) in PAIRS.items()}
    two |= {name: options(data_bin, *given, "--max-update", "3") for name, given in DDP.items()}
    # A criterion that does not use the penalties of the layers.
    plain = {"criterion": ["cross_entropy"]}
    two["cross-entropy"] = options(data_bin, *INPUT, "--span-shortening", "--attention-dropout", "0.1", **plain)
    two["oom-forward"] = options(data_bin)
    two["oom-backward"] = options(data_bin, "--ddp-backend", "legacy_ddp")
    for runs, rows in ((two, 2), (one, 4)):
        runs["padded"] = options(short, "--batch-size", rows, "--max-epoch", "2")
        valid = options(data_bin, "--batch-size", 2 * rows, "--max-update", "2", "--batch-size-valid", 3 * rows)
        valid += ["--best-checkpoint-metric", "memory_size"]
        runs["valid"] = [option for option in valid if option != "--disable-validation"]
    return {
        count: (folder / str(count), processes.train(folder / str(count), of, count=count))
        for count, of in ((2, two), (1, one))
    }


def parameters(runs, count, name):
    state = torch.load(runs[count][0] / name / "checkpoint_last.pt", weights_only=True)["model"]
    return {name: value for name, value in state.items() if not name.endswith("_float_tensor")}


def logged(runs, count, name, tag="train_inner"):
    return commands.logged(runs[count][1][name], tag)


@pytest.mark.parametrize("name", [*PAIRS, "padded"])
def test_two_processes_train_as_one_with_all_their_rows(runs, name):
    many, single = parameters(runs, 2, name), parameters(runs, 1, name)
    assert many.keys() == single.keys()
    torch.testing.assert_close(many, single, rtol=1e-4, atol=5e-6)
    steps, expected = logged(runs, 2, name), logged(runs, 1, name)
    assert len(steps) == len(expected) == 6
    for step, other in zip(steps, expected):
        for key in SAME:
            assert step[key] == pytest.approx(other[key], abs=2e-3, rel=1e-3), key


def test_maxima_are_maxima_and_megabytes_those_of_one_batch(runs):
    steps = logged(runs, 2, "rows")
    assert len({step["span_max"] for step in steps}) > 1 and all(
        step["span_mean"] <= step["span_max"] for step in steps
    )
    big, small = (logged(runs, count, "rows")[-1]["memory_mb"] for count in (1, 2))
    assert big == pytest.approx(2 * small, abs=0.02) and small > 0


def test_validation_counts_every_token_once(runs):
    (two,), (one,) = (logged(runs, count, "valid", "valid") for count in (2, 1))
    for key in ("loss", "nll_loss", "memory_size", "span_max", "wpb"):
        assert two[f"valid_{key}"] == pytest.approx(one[f"valid_{key}"], abs=2e-3, rel=1e-3), key
    # 4001 tokens in 12 rows of 333 or 334 are read in blocks of 8.
    assert two["valid_wpb"] * 42 == pytest.approx(4001, abs=3)


@pytest.mark.parametrize("name, updates", [*((name, 3) for name in DDP), ("cross-entropy", 6)])
def test_every_parameter_has_a_gradient(runs, name, updates):
    assert [step["num_updates"] for step in logged(runs, 2, name)] == list(range(1, updates + 1))


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_one_that_runs_out_of_memory_does_not_stop_the_others(runs, where):
    """Its rows are left out of that update and go on with their memory in the next."""
    steps, expected = logged(runs, 2, f"oom-{where}"), logged(runs, 2, "rows")
    assert "takes no part in an update: CUDA out of memory" in (runs[2][0] / "1.log").read_text()
    assert [step["wpb"] for step in steps] == [64, 64, 32, 64, 64, 64]
    assert steps[:2] == [{**step, **{key: steps[n][key] for key in ("ups", "wps", "wall", "train_wall")}}
                         for n, step in enumerate(expected[:2])]  # fmt: skip
    # The memory is as large as in a run without the error.
    assert steps[-1]["memory_size"] == pytest.approx(expected[-1]["memory_size"], rel=0.15)
    assert steps[-1]["nll_loss"] < steps[0]["nll_loss"]


TORCHRUN = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "WORLD_SIZE": "2", "RANK": "1"}
SRUN = {"SLURM_NTASKS": "3", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "3"}


@pytest.mark.parametrize("shards", [3, 7])
def test_any_number_of_shards_scores_every_token_once(data_bin, checkpoint, monkeypatch, caplog, shards):
    """Also where a launcher has started several processes that share the shards."""
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    counts = []
    for shard in range(shards):
        arguments = [
            "fairseq-eval-lm", data_bin, "--path", checkpoint, "--user-dir", commands.USER_DIR,
            "--task", "memory_caching_lm",
            "--gen-subset", "test", "--cpu", "--num-workers", "0", "--num-shards", shards, "--shard-id", shard,
        ]  # fmt: skip
        monkeypatch.setattr(sys, "argv", [str(argument) for argument in arguments])
        caplog.clear()
        with caplog.at_level("INFO"):
            eval_lm.cli_main()
        counts.append(int(re.search(r"Evaluated ([\d,]+) tokens", caplog.text).group(1).replace(",", "")))
    assert sum(counts) == 3001 and max(counts) - min(counts) == 1


@pytest.mark.parametrize(
    "environment, words",
    [(TORCHRUN, r"torchrun started 2 .*\$RANK"), (SRUN, r"srun started 3 .*\$SLURM_PROCID")],
    ids=["torchrun", "srun"],
)
def test_processes_that_would_train_models_of_their_own(data_bin, monkeypatch, environment, words, tmp_path):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["fairseq-train", *processes.options(data_bin, "--save-dir", tmp_path)])
    with pytest.raises(ValueError, match=words):
        train.cli_main()


@pytest.mark.parametrize(
    "environment",
    [
        {"WORLD_SIZE": "2"},
        {**TORCHRUN, "WORLD_SIZE": "1"},
        # In a batch script, or in a shell of an allocation.
        {"SLURM_NTASKS": "3", "SLURM_PROCID": "0"},
        {"SLURM_NTASKS": "3", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},
    ],
    ids=["a-mere-number", "torchrun-of-one", "batch-script", "shell"],
)
def test_a_process_that_is_alone_is_left_alone(monkeypatch, environment):
    for name in (*TORCHRUN, *SRUN):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    check_processes_are_joined()
