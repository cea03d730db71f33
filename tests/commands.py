"""The real commands, each in a process of its own, as a user runs them.

Python scripts run in processes forked from one that has loaded torch and fairseq already (fork_server.py), which saves
most of their time. ``fresh=True`` starts a new interpreter instead, where an import is tested, or memory is measured.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import fork_server

ROOT = Path(__file__).parents[1]
USER_DIR = ROOT / "fairseq_expire"
# Small enough for seconds, deterministic.
MODEL = [
    "--decoder-layers", "2", "--decoder-embed-dim", "32", "--decoder-ffn-embed-dim", "64",
    "--decoder-attention-heads", "2", "--dropout", "0",
]  # fmt: skip
SPANS = {
    "expire_span_lm": ["--max-span", "256", "--span-ramp", "16", "--span-init", "48", "--expire-loss-weight", "1e-4"],
    "adaptive_span_lm": ["--max-span", "64", "--span-ramp", "16", "--span-init", "20", "--expire-loss-weight", "1e-4"],
    "compressive_transformer_lm": ["--max-span", "48", "--compressed-size", "12"],
}


def environment(**changed):
    """The environment of a command: without GPUs, and with this checkout in front of what is installed."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", **changed}


def start(*command, fresh=False, env=None, **options):
    """Starts a command.

    Args:
        fresh: in a new interpreter, not a forked one.
        env: by default, that of :func:`environment`.
        options: ``cwd``, ``stdin``, ``stdout``, ``stderr`` and ``start_new_session`` of :class:`subprocess.Popen`,
            but no pipes.
    Returns:
        a :class:`subprocess.Popen`, or what has its interface.
    """
    command, env = [str(part) for part in command], env or environment()
    if fresh or not fork_server.can_run(command):
        return subprocess.Popen(command, env=env, **options)
    return fork_server.start(command, env=env, **options)


def result(*command, fresh=False, env=None, cwd=None, given=b""):
    """Runs a command to its end.

    Args:
        given: bytes of its standard input.
    Returns:
        a :class:`subprocess.CompletedProcess` with its output as bytes.
    """
    command, env = [str(part) for part in command], env or environment()
    if fresh or not fork_server.can_run(command):
        return subprocess.run(command, input=given, capture_output=True, env=env, cwd=cwd)
    return fork_server.run(command, given=given, env=env, cwd=cwd)


def run(*command, code=0, cwd=None, env=None, fresh=False):
    """Runs a command. Fails the test with its output unless it ends with ``code``.

    Returns:
        what it printed.
    """
    done = result(*command, cwd=cwd, env=env, fresh=fresh)
    output = (done.stdout + done.stderr).decode()
    assert done.returncode == code, f"{' '.join(map(str, command))}\nended with {done.returncode}:\n{output[-4000:]}"
    return output


def tool(name):
    """A command of fairseq, from the interpreter's own environment."""
    return Path(sys.executable).parent / name


def write_tools(folder, env):
    """Writes fairseq's commands to a folder for PATH, so that shell scripts run them in forked processes.

    Args:
        env: the environment of the scripts.
    """
    folder.mkdir()
    for path in tool("").glob("fairseq-*"):
        fork_server.write_stand_in(folder / path.name, path, env)
    return folder


def train(data, save_dir, *options, arch="expire_span_lm", updates=20, code=0):
    """``fairseq-train`` with a small model; options given last win."""
    spans = next((options for name, options in SPANS.items() if arch.startswith(name)), ["--max-span", "64"])
    return run(
        tool("fairseq-train"), data, "--user-dir", USER_DIR, "--task", "memory_caching_lm", "--arch", arch, *MODEL,
        *spans, "--criterion", "expire_span_loss", "--tokens-per-sample", "32", "--batch-size", "8",
        "--optimizer", "adam", "--lr", "0.003", "--max-update", updates, "--cpu", "--save-dir", save_dir,
        "--log-format", "json", "--log-interval", "1", "--num-workers", "0", "--no-epoch-checkpoints", *options,
        code=code,
    )  # fmt: skip


def score(data, path, *options, code=0):
    """``fairseq-eval-lm`` on the test split."""
    return run(
        tool("fairseq-eval-lm"), data, "--path", path, "--user-dir", USER_DIR, "--task", "memory_caching_lm",
        "--gen-subset", "test", "--cpu", *options, code=code,
    )  # fmt: skip


def scored(output):
    """(tokens, bits per token) that ``fairseq-eval-lm`` printed."""
    tokens = re.search(r"Evaluated ([\d,]+) tokens", output).group(1)
    return int(tokens.replace(",", "")), float(re.search(r"Loss \(base 2\): ([\d.]+)", output).group(1))


def validate(data, path, *options, code=0):
    """``fairseq-validate`` on the test split; its statistics."""
    output = run(
        tool("fairseq-validate"), data, "--path", path, "--user-dir", USER_DIR, "--task", "memory_caching_lm",
        "--valid-subset", "test", "--cpu", "--log-format", "json", *options, code=code,
    )  # fmt: skip
    return {key.removeprefix("test_"): value for key, value in logged(output, "test")[-1].items()}


def logged(output, tag):
    """The JSON lines that fairseq logged under a tag: ``train_inner``, ``train``, ``valid``, ``test``."""
    lines = re.findall(rf"(?:\| INFO \| {tag} \| |\[{tag}\]\[INFO\] - )(\{{.*\}})", output)
    return [{key: _number(value) for key, value in json.loads(line).items()} for line in lines]


def hypotheses(output):
    """{number of the prompt: [(score, names of symbols, scores of tokens)]}, all to base 2, as printed."""
    found = {}
    for line in output.splitlines():
        if re.match(r"H-\d+\t", line):
            name, score, text = line.split("\t")
            found.setdefault(int(name[2:]), []).append([float(score), text.split()])
        if re.match(r"P-\d+\t", line):
            name, scores = line.split("\t")
            found[int(name[2:])][-1].append([float(value) for value in scores.split()])
    return found


def _number(value):
    try:
        return float(value)
    except (TypeError, ValueError):
        return value
