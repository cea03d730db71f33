"""The demo with stand-ins for its commands: its steps, what it keeps, its messages, and its time."""

import io
import json
import os
import re
import sys

import demo
import progress
import pytest
import report
from context_model import ContextModel
from pace import Pace

# A stand-in for data_prep/text.py, fairseq's commands and forgetting.py; each call adds its name to the file `calls`.
FAKE = """
import json, os, pathlib, sys
name, words = sys.argv[1], sys.argv[2:]
with open({calls!r}, "a") as file:
    print(name if "--restore" not in words else "restore", file=file)

def log(tag, **stats):
    print("2024-01-01 00:00:00 | INFO |", tag, "|", json.dumps({{key: str(value) for key, value in stats.items()}}))

if "--restore" in words:
    print("text of", words[-1], end="")
elif name == "text":
    pathlib.Path(words[words.index("--dest") + 1]).mkdir()
elif name == "fairseq-train":
    # One thread makes two updates a second, each further thread one more; `wall` continues from the last call.
    def option(name):
        return float(words[words.index(name) + 1]) if name in words else None

    state = pathlib.Path(words[words.index("--save-dir") + 1] + ".state")
    updates, wall = json.loads(state.read_text()) if state.exists() else (0, 0)
    stop, most = option("--stop-time-hours"), option("--max-update")
    rate = 1 + int(os.environ["OMP_NUM_THREADS"])
    while updates < most and (stop is None or wall < 3600 * stop):
        updates, wall = updates + 1, wall + 1 / rate
        log("train_inner", num_updates=updates, ups=rate, nll_loss=3.5, memory_size=100)
        if pathlib.Path({broken!r}).exists():
            sys.exit("out of luck")
    state.write_text(json.dumps([updates, wall]))
elif name == "fairseq-eval-lm":
    print("2024-01-01 00:00:00 | INFO | fairseq_cli.eval_lm | Evaluated 12 tokens in 0.1s (120.00 tokens/s)")
    print("2024-01-01 00:00:00 | INFO | fairseq_cli.eval_lm | Loss (base 2): 2.1234, Perplexity: 4.36")
elif name == "fairseq-validate":
    log("test", test_loss=2.2, test_memory_size=312.4)
elif name == "forgetting":
    result = dict(right=0.5, memory_size=49.0, spans=[[1.0, 200.0, 3.0]])
    pathlib.Path(words[words.index("--json") + 1]).write_text(json.dumps(dict(near=result, far=result, expire=result)))
"""


class Uniform:
    """A stand-in for the order-2 model."""

    def __init__(self, stream):
        assert stream.read()

    def bits_per_byte(self, stream):
        return 8.0


TRAINED = ["fairseq-train"] * 5
ALL = ["text", "restore", "restore", *TRAINED, "fairseq-eval-lm", "fairseq-validate", "forgetting"]


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Replaces the commands of the demo; `fake.calls()` returns the names of those that ran since its last call."""
    calls, broken, script = (tmp_path / name for name in ("calls", "broken", "fake.py"))
    script.write_text(FAKE.format(calls=str(calls), broken=str(broken)))

    def tool(name):
        path = tmp_path / name
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" {name} "$@"\n')
        path.chmod(0o755)
        return path

    monkeypatch.setattr(demo, "REPOSITORY", tmp_path)
    monkeypatch.setattr(demo, "PREPARE", [sys.executable, script, "text"])
    monkeypatch.setattr(demo, "tool", tool)
    monkeypatch.setattr(demo, "FORGETTING", [sys.executable, script, "forgetting"])
    monkeypatch.setattr(demo.Pace, "cores_here", staticmethod(lambda: 2))
    # The real one takes a second for a text of any length.
    monkeypatch.setattr(demo, "ContextModel", Uniform)

    class Fake:
        train_breaks = broken

        def calls(self):
            names = calls.read_text().split() if calls.exists() else []
            calls.unlink(missing_ok=True)
            return names

    return Fake()


def test_all_steps_run_once(fake, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "ContextModel", ContextModel)
    assert demo.main([]) == 0
    assert fake.calls() == ALL
    out = capsys.readouterr().out
    assert re.search(r"order-2 context model \(Witten-Bell\) +\| +[1-7]\.\d+\n", out)
    assert re.search(r"expire_span_lm_tiny \(ours\) +\| +2\.123\n", out)
    assert f"remembers 312 of up to {demo.MAX_SPAN} steps on average" in out
    assert str(tmp_path / ".demo" / "stdlib" / "checkpoints" / "checkpoint_last.pt") in out
    assert re.search(r"layer 1 +\| +1 \| +200 \| +3\n", out)

    assert demo.main([]) == 0
    assert fake.calls() == []
    again = capsys.readouterr().out
    assert "kept from an earlier run" in again
    assert again.split("\n\n", 1)[1] == out.split("\n\n", 1)[1]


def test_other_settings_start_over(fake, tmp_path, monkeypatch, capsys):
    demo.main([])
    fake.calls()
    checkpoint = tmp_path / ".demo" / "stdlib" / "checkpoints" / "checkpoint_last.pt"
    checkpoint.parent.mkdir()
    checkpoint.touch()
    monkeypatch.setattr(demo, "TRAIN", [*demo.TRAIN, "--dropout", "0.1"])
    assert demo.main([]) == 0
    assert fake.calls() == ALL
    assert not checkpoint.exists()
    assert "starting over" in capsys.readouterr().out


def test_training_that_fails_shows_its_log_and_can_go_on(fake, tmp_path, capsys):
    fake.train_breaks.touch()
    checkpoint = tmp_path / ".demo" / "stdlib" / "checkpoints" / "checkpoint_last.pt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    assert demo.main([]) == 1
    error = capsys.readouterr().err
    assert "train ended with exit status 1" in error
    assert "  out of luck" in error
    assert str(tmp_path / ".demo" / "stdlib" / "train.log") in error

    fake.calls()
    fake.train_breaks.unlink()
    assert demo.main([]) == 0
    assert fake.calls() == ALL[3:]
    assert checkpoint.exists()


def test_every_byte_must_be_scored(fake, tmp_path, capsys):
    demo.main([])
    work = tmp_path / ".demo" / "stdlib"
    (work / "score.json").unlink()
    (work / "test").write_bytes(b"one byte more")
    assert demo.main([]) == 1
    assert "scored 12 tokens, but the test text has 13 bytes" in capsys.readouterr().err


@pytest.mark.parametrize(
    "what", ["missing", "empty string", "empty file", "folder of empty files", "folder of hidden files", "too short"]
)
def test_nothing_to_read(what, fake, tmp_path, capsys):
    folder = tmp_path / "texts"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "empty").touch()
    hidden = tmp_path / "hidden"
    (hidden / ".git").mkdir(parents=True)
    (hidden / ".git" / "config").write_text("something" * 20000)
    (tmp_path / "short").write_text("something")
    path = {
        "too short": tmp_path / "short",
        "missing": "/no/such/text",
        "empty string": "",
        "empty file": folder / "inner" / "empty",
        "folder of empty files": folder,
        "folder of hidden files": hidden,
    }[what]
    assert demo.main(["--text", str(path)]) == 2
    out, error = capsys.readouterr()
    assert not out
    assert error.count("\n") == 1 and repr(str(path)) in error
    assert not fake.calls() and not (tmp_path / ".demo").exists()


def test_fairseq_missing(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert demo.main([]) == 2
    assert "there is no fairseq-train beside" in capsys.readouterr().err


def test_own_text_has_its_own_folder(tmp_path):
    for name in ("one/text", "two/text", "a:b c"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("something" * 20000)
    one, two, odd = (demo.find_corpus(str(tmp_path / name)).work.name for name in ("one/text", "two/text", "a:b c"))
    assert one != two and one.startswith("text-") and len(one) == len("text-") + 8
    assert odd.startswith("a_b_c-")


def test_training_progress():
    lines = progress.TrainingProgress(max_update=200, seconds=100)

    def line(tag, **stats):
        return lines.line(f"2024-01-01 00:00:00 | INFO | {tag} | {json.dumps(stats)}")

    first = line("train_inner", num_updates="50", ups="2", nll_loss="3.5", memory_size="99.6")
    assert first == "update 50 of 200, 3.500 bits per byte, remembers 100 steps, about 1:15 left"
    assert lines.rate is None
    assert line("valid", valid_nll_loss="2.25") is None
    late = line("train_inner", num_updates="150", ups="1", nll_loss="3", memory_size="9")
    assert late.endswith("about 0:00 left")
    assert lines.rate == 1
    line("train_inner", num_updates="152", ups="0.5", nll_loss="3", memory_size="9")
    assert lines.rate == 102 / 104
    # Lines further back than the last few seconds do not count.
    line("train_inner", num_updates="156", ups="0.25", nll_loss="3", memory_size="9")
    assert lines.rate == 4 / 16


def test_updates_fit_the_time_and_the_rate_falls_to_zero(fake, tmp_path):
    """In 240 seconds, with 2 updates a second on one thread and 3 on two threads."""
    demo.main([])
    pace = json.loads((tmp_path / ".demo" / "stdlib" / "pace.json").read_text())
    assert pace["finished"] and pace["rates"]["1"] == pytest.approx(2) and pace["rates"]["2"] == pytest.approx(3)
    assert pace["trained"] == pytest.approx(demo.TRAIN_SECONDS, abs=2)
    assert pace["updates"] == pytest.approx(12 * 2 + (demo.TRAIN_SECONDS - 12) * 3, abs=6)


def legs(rate, *, cores, seconds=240):
    """Returns (threads, updates, seconds, True if the learning rate is zero) after each leg.

    `rate(threads, time)` is the number of updates per second.
    """
    pace, found = Pace(seconds, cores=cores), []
    while leg := pace.next_leg():
        lines = progress.TrainingProgress(leg.max_update, seconds, pace.updates, pace.trained)
        while lines.updates < leg.max_update and (leg.until is None or lines.trained < leg.until):
            updates_per_second = rate(leg.threads, lines.trained)
            stats = {"num_updates": lines.updates + 1, "ups": updates_per_second, "nll_loss": 1, "memory_size": 1}
            lines.line(f"2024-01-01 00:00:00 | INFO | train_inner | {json.dumps(stats)}")
        pace.measured(leg, updates=lines.updates, trained=lines.trained, rate=lines.rate)
        pace = Pace.of(json.loads(json.dumps(pace.to_dict())))
        found.append((leg.threads, lines.updates, lines.trained, lines.updates == leg.max_update))
    return found


def test_threads_are_tried_as_long_as_more_are_faster():
    assert {threads for threads, *_ in legs(lambda threads, time: 4, cores=1)} == {1}
    assert [threads for threads, *_ in legs(lambda threads, time: 4 / threads, cores=8)] == [1, 2, 1, 1, 1]
    assert [threads for threads, *_ in legs(lambda threads, time: {1: 3, 2: 5, 4: 7, 8: 6}[threads], cores=16)][:5] == [
        1,
        2,
        4,
        8,
        4,
    ]
    assert [threads for threads, *_ in legs(lambda threads, time: threads, cores=6)][-1] == 4


@pytest.mark.parametrize(
    "rate",
    [
        lambda threads, time: 1 if time > 100 else 4,
        lambda threads, time: 4 if time > 100 else 1,
        lambda threads, time: 0.1,
    ],
    ids=["slower", "faster", "very_slow"],
)
def test_a_machine_that_changes_ends_annealed_and_in_time(rate):
    last = legs(rate, cores=2)[-1]
    assert last[3]
    assert last[2] <= 240 + 60


@pytest.mark.parametrize(
    "line", ["", "{}", "time | INFO | fairseq_cli.train | {'_name': None}", "a | b | c | Start iterating"]
)
def test_other_lines_are_no_statistics(line):
    assert progress.read_json(line) == (None, {})
    assert progress.TrainingProgress(1, 1).line(line) is None


def test_interrupt_ends_the_child(tmp_path):
    pids = []

    def interrupt(line):
        pids.append(int(line))
        raise KeyboardInterrupt

    script = "import os, time; print(os.getpid()); time.sleep(60)"
    with pytest.raises(KeyboardInterrupt):
        progress.run([sys.executable, "-c", script], tmp_path / "log", interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_interrupt_says_how_to_continue(fake, monkeypatch, capsys):
    def interrupt(work, status):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "train", interrupt)
    assert demo.main([]) == 130
    assert capsys.readouterr().err == "\nStopped. Run the same command again to go on from here.\n"


def test_status_prints_lines_outside_a_terminal():
    stream = io.StringIO()
    with progress.Status("1/1 step", stream) as status:
        status.say("half way")
    assert stream.getvalue() == "1/1 step [0:00]\n1/1 step [0:00] half way\n"


def test_table_is_aligned():
    lines = report.table(dict.fromkeys(report.ROWS, 1.5)).splitlines()
    assert len({line.index("|") for line in lines}) == 1
    assert len({len(line) for line in lines}) == 1
    assert lines[-1].endswith("1.500")
