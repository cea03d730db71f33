"""``--task memory_caching_tagging`` with the real commands, against plain readings of the data and the model."""

import math
import re
import sys
from itertools import pairwise

import commands
import labelled
import numpy as np
import processes
import pytest
import scoring

TASK = ["--task", "memory_caching_tagging"]
EOS = labelled.EOS


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return labelled.write(tmp_path_factory.mktemp("labelled") / "data", eos=True)


def train(data, save_dir, *options, updates=12, arch="expire_span_lm"):
    sizes = ["--position-range", "32", "--tokens-per-sample", "16"]
    return commands.train(data, save_dir, *TASK, *sizes, *options, arch=arch, updates=updates)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """The path of a checkpoint, and what its training printed."""
    folder = tmp_path_factory.mktemp("model")
    output = train(data, folder, "--validate-interval-updates", "3")
    return folder / "checkpoint_last.pt", output


def losses(output):
    return [log["loss"] for log in commands.logged(output, "train_inner")]


def labels_and_logprobs(data, path, rows=1, cut=()):
    """Labels that count [n], and log-probabilities [n, labels], by the independent reader, which reads each of ``rows``
    rows, and each part from a place in ``cut`` on, by itself.
    """
    inputs, labels = labelled.read(data, "test")
    borders = sorted({len(inputs) * row // rows for row in range(rows + 1)} | set(cut))
    logprobs = [scoring.reader_logprobs(path, inputs[one:other]) for one, other in pairwise(borders)]
    counted = (labels != labelled.PAD) & (labels != EOS)
    return labels[counted], np.concatenate(logprobs)[counted]


def mean_bits(labels, logprobs):
    return -logprobs[np.arange(len(labels)), labels].mean() / math.log(2)


@pytest.mark.parametrize("arch", [*commands.SPANS, "transformer_xl_lm"])
def test_scores_are_those_of_a_reader_that_keeps_everything(data, arch, trained, tmp_path):
    path = trained[0]
    if arch != "expire_span_lm":
        train(data, tmp_path, "--disable-validation", arch=arch, updates=6)
        path = tmp_path / "checkpoint_last.pt"
    for rows, block in ((1, 512), (3, 2)):
        labels, logprobs = labels_and_logprobs(data, path, rows)
        found = scoring.exact_loss(data, path, *TASK, "--batch-size", rows, "--tokens-per-sample", block)
        assert found == pytest.approx(mean_bits(labels, logprobs), abs=2e-6)


def test_validation_and_errors(data, trained):
    path, _ = trained
    labels, logprobs = labels_and_logprobs(data, path, 3)
    error = 100 * (logprobs.argmax(1) != labels).mean()
    found = commands.validate(data, path, *TASK, "--batch-size", "3")
    assert found["nll_loss"] == pytest.approx(mean_bits(labels, logprobs), abs=6e-4)
    assert found["error"] == pytest.approx(error, abs=6e-3)
    output = commands.score(data, path, *TASK, "--batch-size", "3")
    assert f"error {error:.2f} % of {len(labels)} labels" in output


def test_the_mean_of_an_epoch_is_that_of_all_its_labels(data, tmp_path):
    # Blocks of two tokens of one row mostly have no label that counts.
    options = ["--tokens-per-sample", "2", "--batch-size", "2", "--lr", "0", "--max-epoch", "1", "--disable-validation"]
    output = train(data, tmp_path, *options, "--expire-loss-weight", "0.01", updates=10_000)
    epoch = commands.logged(output, "train")[-1]
    price = epoch["train_expire_loss"]
    assert price > 0.01 and epoch["train_loss"] == pytest.approx(epoch["train_nll_loss"] + price, abs=2e-3)
    options = ["--valid-subset", "train", "--batch-size", "2", "--expire-loss-weight", "0.01"]
    same = commands.run(
        commands.tool("fairseq-validate"), data, "--path", tmp_path / "checkpoint_last.pt", "--user-dir",
        commands.USER_DIR, *TASK, *options, "--cpu", "--log-format", "json",
    )  # fmt: skip
    for name in ("train_loss", "train_nll_loss", "train_expire_loss", "train_error"):
        assert commands.logged(same, "train")[-1][name] == pytest.approx(epoch[name], abs=2e-3), name


def test_validation_leaves_training_untouched(data, trained, tmp_path):
    assert losses(train(data, tmp_path, "--disable-validation")) == losses(trained[1])


def test_a_run_that_is_stopped_in_an_epoch_goes_on(data, trained, tmp_path):
    first = train(data, tmp_path, "--disable-validation", updates=5)
    rest = train(data, tmp_path, "--disable-validation")
    assert "memory is made again" not in rest
    assert losses(first) + losses(rest) == losses(trained[1])
    other = train(data, tmp_path, "--disable-validation", "--batch-size", "4", updates=15)
    assert "goes on in other rows" in other and len(losses(other)) == 3


def test_documents_are_read_by_themselves(data, trained):
    # A document begins at </s>, which is the last symbol of an episode.
    path, _ = trained
    inputs, _ = labelled.read(data, "test")
    labels, logprobs = labels_and_logprobs(data, path, cut=np.flatnonzero(inputs == EOS))
    found = scoring.exact_loss(data, path, *TASK, "--break-memory-at-eos", "--tokens-per-sample", "7")
    assert found == pytest.approx(mean_bits(labels, logprobs), abs=2e-6)


def test_two_processes_are_one_with_all_rows(data, tmp_path):
    options = [*TASK, "--tokens-per-sample", "4", "--log-interval", "1"]
    found = [
        processes.train(
            tmp_path / str(count), {"run": processes.options(data, *options, "--batch-size", rows)}, count=count
        )
        for count, rows in ((2, 2), (1, 4))
    ]
    two, one = (commands.logged(each["run"], "train_inner") for each in found)
    for name in ("loss", "nll_loss", "expire_loss", "error", "memory_size", "gnorm"):
        # An update without a label that counts has no error.
        values, expected = ([-1 if log[name] is None else log[name] for log in logs] for logs in (two, one))
        assert values == pytest.approx(expected, rel=2e-3), name


def test_data_of_fairseq_preprocess(data, tmp_path):
    """Two calls, one for each stream, make the data that the other tests read."""
    for part, names in (("input0", labelled.INPUTS), ("label", labelled.LABELS)):
        raw, options = tmp_path / f"{part}-text", []
        raw.mkdir()
        for seed, (split, number) in enumerate({"train": 60, "valid": 20, "test": 20}.items()):
            lines = [" ".join(pair[part == "label"]) for pair in labelled.episodes(number, seed=seed)]
            (raw / split).write_text("\n".join(lines) + "\n")
            options += [f"--{split}pref", raw / split]
        (raw / "dict.txt").write_text("".join(f"{name} 1\n" for name in names))
        options += ["--srcdict", raw / "dict.txt", "--destdir", tmp_path / part]
        commands.run(commands.tool("fairseq-preprocess"), "--only-source", *options, "--workers", "1")
        assert (tmp_path / part / "dict.txt").read_text().split()[::2] == names
    for split in ("train", "valid", "test"):
        for made, expected in zip(labelled.read(tmp_path, split), labelled.read(data, split)):
            assert made.tolist() == expected.tolist()
    output = train(tmp_path, tmp_path / "model", updates=1)
    assert commands.logged(output, "valid")[-1]["valid_error_."] >= 0


def test_text_is_refused(data, trained, tmp_path):
    path, _ = trained
    for command in ("fairseq-generate", "fairseq-interactive"):
        output = commands.run(
            commands.tool(command), data, "--path", path, "--user-dir", commands.USER_DIR, *TASK, "--cpu", code=1
        )
        assert "predicts labels and generates no text" in output
    output = commands.run(sys.executable, "-m", "fairseq_expire.export", path, tmp_path / "out", code=2)
    assert re.search(r"predicts labels, and can neither generate nor score text", output)
