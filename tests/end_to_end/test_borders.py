"""``--break-memory-at-eos`` with the real commands: each document is scored as if it were alone."""

import argparse
import inspect
import math
import re
import sys

import commands
import numpy as np
import pytest
import reader
import torch
from scoring import exact_loss, reader_loss, split_tokens

import fairseq_expire

DOCUMENTS = {
    "train": [(0, 9000), (9000, 21000), (21000, 21010), (21010, 50000)],
    "valid": [(50000, 50500), (50500, 52000)],
    "test": [(52000, 52700), (52700, 52703), (52703, 53600)],
}
ARCHS = ["expire_span_lm", "compressive_transformer_lm"]
OPTION = "--break-memory-at-eos"


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A folder with a folder for each split, and a file for each document."""
    folder, source = tmp_path_factory.mktemp("texts"), inspect.getsource(argparse)
    for split, places in DOCUMENTS.items():
        (folder / split).mkdir()
        for number, (start, stop) in enumerate(places):
            (folder / split / f"{number}.txt").write_text(source[start:stop])
    return folder


@pytest.fixture(scope="module")
def data(texts, tmp_path_factory):
    dest = tmp_path_factory.mktemp("data") / "bytes"
    splits = [part for split in DOCUMENTS for part in (f"--{split}", texts / split)]
    script = commands.ROOT / "data_prep" / "text.py"
    commands.run(sys.executable, script, "--level", "bytes", "--append-eos", "--dest", dest, *splits)
    return dest


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """{architecture: the folder of a run of 20 updates, and its losses}."""
    made = {}
    for arch in ARCHS:
        folder = tmp_path_factory.mktemp("trained")
        output = commands.train(data, folder, OPTION, "--save-interval-updates", "9", arch=arch)
        made[arch] = folder, [step["loss"] for step in commands.logged(output, "train_inner")]
    return made


def cost_alone(model, text):
    """Bits of a document and the ``</s>`` behind it, from its own score and stream."""
    stream = model.stream()
    stream.feed(text)
    return model.score(text).bits - stream.next_distribution()["</s>"] / math.log(2)


@pytest.mark.parametrize("arch", ARCHS)
def test_one_row_gives_each_document_the_score_it_has_alone(arch, data, texts, runs):
    """The model reads with borders without being told again, in blocks of any length."""
    path = runs[arch][0] / "checkpoint_last.pt"
    model = fairseq_expire.load(path, data=data)
    documents = [(texts / "test" / f"{number}.txt").read_text() for number in range(3)]
    tokens = sum(map(len, documents)) + 3
    expected = sum(cost_alone(model, document) for document in documents) / tokens
    assert exact_loss(data, path, "--tokens-per-sample", "37") == pytest.approx(expected, abs=1e-6)
    without = exact_loss(data, path, "--model-overrides", "{'break_memory_at_eos': False}")
    assert without == pytest.approx(reader_loss(data, path, 1)[0], abs=1e-6)
    assert abs(without - expected) > 1e-5


def test_any_model_scores_with_borders(data, runs, tmp_path):
    """A checkpoint that was written before there was the option; each row begins cold."""
    state = torch.load(runs["expire_span_lm"][0] / "checkpoint_last.pt", weights_only=True)
    assert state["cfg"]["model"].pop("break_memory_at_eos") and state["cfg"]["task"].pop("break_memory_at_eos")
    old = tmp_path / "old.pt"
    torch.save(state, old)
    spans = reader.expire_span_mask(max_span=256, ramp=16)
    tokens, previous = split_tokens(data, "test")
    for rows in (1, 3):
        starts = np.split(previous == 2, [len(tokens) * row // rows for row in range(1, rows)])
        # The reader reads row after row, with two layers each.
        views = iter([reader.in_documents(own, spans)["mask_of"] for own in starts for _ in range(2)])
        expected, _ = reader_loss(data, old, rows, mask_of=lambda *given, views=views: next(views)(*given))
        assert exact_loss(data, old, "--batch-size", rows, OPTION) == pytest.approx(expected, abs=1e-6)
        assert next(views, None) is None
    assert exact_loss(data, old) == pytest.approx(reader_loss(data, old, 1)[0], abs=1e-6)


@pytest.mark.parametrize("arch", ARCHS)
def test_a_stopped_run_goes_on_as_if_it_had_not_been(arch, data, tmp_path, runs):
    folder, losses = runs[arch]
    commands.train(data, tmp_path, OPTION, "--save-interval-updates", "9", arch=arch, updates=9)
    output = commands.train(data, tmp_path, OPTION, "--save-interval-updates", "9", arch=arch)
    assert [step["loss"] for step in commands.logged(output, "train_inner")] == losses[9:]
    one, other = (torch.load(path / "checkpoint_last.pt", weights_only=True)["model"] for path in (folder, tmp_path))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_documents_are_continued_alone(data, texts, runs, tmp_path):
    """``fairseq-interactive`` and an export; a state of a stream goes on with the same borders only."""
    path = runs["expire_span_lm"][0] / "checkpoint_last.pt"
    model = fairseq_expire.load(path, data=data)
    commands.run(sys.executable, "-m", "fairseq_expire.export", path, tmp_path / "export", "--data", data)
    exported = fairseq_expire.load(tmp_path / "export")
    text = (texts / "test" / "0.txt").read_text()
    assert exported.score(text).bits == model.score(text).bits
    assert exported.model.config.document_start == 2
    continued = commands.result(
        commands.tool("fairseq-interactive"), data, "--path", path, "--user-dir", commands.USER_DIR, "--task",
        "memory_caching_lm", "--cpu", "--beam", "1", "--max-len-b", "20", given=b"def f(x):\n",
    )  # fmt: skip
    [[_, symbols, scores]] = commands.hypotheses(continued.stdout.decode())[0]
    assert len(symbols) >= len("def f(x):")
    np.testing.assert_allclose(scores[:9], -model.score("def f(x):").token_bits, atol=1e-3)
    state = model.stream().state_dict()
    without = fairseq_expire.load(tmp_path / "export")
    object.__setattr__(without.model.config, "document_start", None)
    with pytest.raises(ValueError, match="their --break-memory-at-eos; these are others"):
        without.stream().load_state_dict(state)


def test_lines_that_end_in_eos(texts, tmp_path):
    """Words: refused, unless each line is a document."""
    splits = [part for split in DOCUMENTS for part in (f"--{split}", texts / split)]
    script = commands.ROOT / "data_prep" / "text.py"
    commands.run(sys.executable, script, "--level", "words", "--dest", tmp_path / "words", *splits)
    refused = commands.train(tmp_path / "words", tmp_path / "save", OPTION, updates=2, code=1)
    assert re.search(r"words every line ends in </s> \(words\), .* with --lines-are-documents", refused)
    commands.train(tmp_path / "words", tmp_path / "save", OPTION, "--lines-are-documents", updates=2)
    model = fairseq_expire.load(tmp_path / "save" / "checkpoint_last.pt")
    stream = model.stream()
    first = stream.next_distribution().log_probs
    stream.feed("a line of some words\n")
    torch.testing.assert_close(stream.next_distribution().log_probs, first)
