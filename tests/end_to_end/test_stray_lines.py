"""The commands print no warning of a library that a user can do nothing about."""

import os
import re
import subprocess
import sys
import warnings

import commands
import pytest

from fairseq_expire.fairseq_patches import stray_lines

MODEL = [*commands.MODEL, *commands.SPANS["expire_span_lm"]]
# Lines of Python, a library or fairseq; "WARNING" is of a log line.
STRAY = re.compile(
    r"Warning\b|WARNING|tensorboardX|DEBUG|deprecat|pkg_resources|detected shared parameter: \S+\.bias", re.IGNORECASE
)
COMMON = ["--user-dir", commands.USER_DIR, "--task", "memory_caching_lm", "--cpu"]


def run(*command, given=""):
    """Returns standard output and standard error of a command; fails the test if the command failed."""
    environment = {**os.environ, "PYTHONPATH": str(commands.ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([str(part) for part in command], input=given, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout, done.stderr


def errors_of(*command):
    return run(*command)[1]


@pytest.mark.parametrize(
    "statement",
    [
        "import fairseq_expire.tasks",
        "import logging; logging.basicConfig(level=logging.INFO); import fairseq_expire; fairseq_expire.register()",
    ],
)
def test_registering_prints_nothing(statement):
    assert errors_of(sys.executable, "-c", statement) == ""


def test_preparing_data_and_exporting_print_nothing(corpus, checkpoint, tmp_path):
    script, data = commands.ROOT / "data_prep/text.py", tmp_path / "data"
    assert errors_of(sys.executable, script, "--level", "words", "--dest", data, "--train", corpus / "test.txt") == ""
    assert errors_of(sys.executable, script, "--verify", data) == ""
    assert errors_of(sys.executable, "-m", "fairseq_expire.export", checkpoint, tmp_path / "out") == ""


def test_the_example_prints_nothing():
    example = commands.ROOT / "examples/quickstart"
    script = (
        f"import sys; sys.path.insert(0, {str(example)!r}); import stream; "
        "stream.train(stream.ByteModel(), b'a text' * 20, epochs=1)"
    )
    assert errors_of(sys.executable, "-c", script) == ""


def log_of(*command, given=""):
    """Returns the log of a command, on whichever stream it is, without the line of all options and the texts."""
    lines = "".join(run(*command, given=given)).splitlines()
    return [line for line in lines if "'_name': None" not in line and not re.match(r"[A-Z]-\d", line)]


def stray(lines):
    return [line for line in lines if STRAY.search(line)]


def test_training_prints_no_stray_lines(data_bin, tmp_path):
    log = log_of(
        commands.tool("fairseq-train"), data_bin, *COMMON, "--arch", "expire_span_lm", *MODEL,
        "--criterion", "expire_span_loss", "--tokens-per-sample", "32", "--batch-size", "8", "--optimizer", "adam",
        "--max-update", "2", "--save-dir", tmp_path, "--num-workers", "0",
    )  # fmt: skip
    assert stray(log) == []
    assert "done training" in log[-1]


@pytest.mark.parametrize(
    "command, options, given",
    [
        ("fairseq-eval-lm", "--gen-subset test", ""),
        ("fairseq-validate", "--valid-subset test --batch-size 1", ""),
        (
            "fairseq-generate",
            "--gen-subset test --sample-break-mode eos --prefix-size 5 --max-len-a 0 --max-len-b 9",
            "",
        ),
        ("fairseq-interactive", "--max-len-a 1 --max-len-b 3", "def main(\n"),
    ],
)
def test_reading_a_checkpoint_prints_no_stray_lines(data_bin, checkpoint, command, options, given):
    log = log_of(commands.tool(command), data_bin, "--path", checkpoint, *COMMON, *options.split(), given=given)
    assert stray(log) == []
    assert any("memory_caching_lm" in line for line in log)


def reported(message, category, module):
    """Returns whether a warning is shown with the filters that the package sets and no others."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        stray_lines.silence()
        warnings.warn_explicit(message, category, "a_file.py", 1, module)
    return bool(caught)


@pytest.mark.parametrize("message, category, module", stray_lines.WARNINGS)
def test_other_warnings_are_shown(message, category, module):
    assert not reported(message + " And more.", category, module or "any.module")
    assert reported(message[:-2] + "?", category, module or "any.module")
    assert reported(message, RuntimeWarning, module or "any.module")
    if module:
        assert reported(message, category, module + "_of_mine")


@pytest.mark.parametrize(
    "path, shown", [("/packages/fairseq/tasks/a.py", 0), ("/packages/fairseq_expire/a.py", 1), ("/mine/a.py", 1)]
)
def test_syntax_warnings_about_fairseq_are_left_out(path, shown):
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        stray_lines.silence()
        compile('1 is not ""', path, "exec")
    assert len(caught) == shown
