"""The table of wrong uses (tests/wrong_uses): each ends with one message before work starts and leaves nothing behind.

Commands run in this process, because starting one takes seconds. A few run in their own, for its last line of output.
"""

import re
import shutil
import sys
import traceback

import commands
import pytest
import scripts
from fairseq.sequence_scorer import SequenceScorer
from fairseq.trainer import Trainer
from fairseq_cli import eval_lm, train, validate
from wrong_uses import checkpoints, combinations, data, data_prep, labels, numbers

from fairseq_expire.tasks.memory_caching_lm import MemoryCachingLMTask

# One module of tests/wrong_uses a kind of wrong use, and its table here.
USES = [
    *numbers.USES,
    *combinations.USES,
    *data.USES,
    *checkpoints.USES,
    *data_prep.USES,
    *labels.USES,
]
COMMANDS = {"train": train.cli_main, "eval-lm": eval_lm.cli_main, "validate": validate.cli_main}


@pytest.fixture
def folder(data_bin, checkpoint, tmp_path, monkeypatch):
    """The current folder, with copies to damage."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(data_bin, "data")
    shutil.copy(checkpoint, "model.pt")
    return tmp_path


def arguments(use):
    """Returns the whole command line."""
    given = use.options.split()
    if use.command not in COMMANDS:
        return given
    common = [
        f"fairseq-{use.command}",
        use.data,
        "--user-dir",
        str(commands.USER_DIR),
        "--task",
        "memory_caching_lm",
        "--cpu",
    ]
    common += ["--num-workers", "0"]
    if use.command == "validate":
        return [*common, "--path", "model.pt", "--valid-subset", "test", "--batch-size", "1", *given]
    if use.command == "eval-lm":
        return [*common, "--path", "model.pt", "--gen-subset", "test", *given]
    ours = use.arch.split("_lm")[0] in ("expire_span", "adaptive_span", "compressive_transformer", "transformer_xl")
    spans = commands.SPANS.get(use.arch, ["--max-span", "64"]) if ours else []
    return [
        *common, "--arch", use.arch, *(commands.MODEL if ours else []), "--criterion", "expire_span_loss", *spans,
        "--save-dir", "save", "--tokens-per-sample", "32", "--batch-size", "8", "--optimizer", "adam",
        "--max-update", "1", *given,
    ]  # fmt: skip


def last_line(use, monkeypatch, capfd):
    """Returns the last line of the command; fails if it does not end with an error."""
    try:
        if use.command in COMMANDS:
            monkeypatch.setattr(sys, "argv", arguments(use))
            COMMANDS[use.command]()
        else:
            scripts.load(use.command.removesuffix(".py")).main(arguments(use))
    except SystemExit as ended:
        assert ended.code == 2
        # From argparse.
        return capfd.readouterr().err.splitlines()[-1]
    except Exception as error:
        lines = traceback.format_exception_only(error)
        assert len(lines) == 1 and lines[0].count("\n") == 1, f"more than a message: {lines}"
        return lines[0]
    pytest.fail("it went through")


def no_work(*arguments, **options):
    raise AssertionError("work has begun")


@pytest.mark.parametrize("use", USES, ids=lambda use: use.name)
def test_wrong_use(use, folder, monkeypatch, capfd):
    for kind, method in [(Trainer, "train_step"), (SequenceScorer, "generate"), (MemoryCachingLMTask, "valid_step")]:
        monkeypatch.setattr(kind, method, no_work)
    if use.damage:
        use.damage(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    line = last_line(use, monkeypatch, capfd)
    assert re.search(use.message, line), f"expected {use.message}, got {line}"
    # fairseq makes empty folders.
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_the_table_has_no_use_twice():
    assert len({use.name for use in USES}) == len({use[1:] for use in USES}) == len(USES)


def test_a_command_started_as_a_module(folder):
    """The patches also work under `python -m`, where the command is the main module."""
    use = next(use for use in USES if use.name == "checkpoints written with what is not installed")
    _, *rest = arguments(use)
    output = commands.run(sys.executable, "-m", "fairseq_cli.train", *rest, code=1, cwd=folder)
    assert re.search(use.message, output.splitlines()[-1])


# Uses where a traceback, or the end of the process, could hide the message.
@pytest.mark.parametrize("name", ["train --span-init 256", "an index cut in its header"])
def test_the_command_ends_with_the_message(folder, name):
    use = next(use for use in USES if use.name == name)
    if use.damage:
        use.damage(folder)
    command, *rest = arguments(use)
    output = commands.run(commands.tool(command), *rest, code=1, cwd=folder)
    assert re.search(use.message, output.splitlines()[-1])
