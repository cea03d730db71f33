"""The small tasks run, record what they reach, and make no run twice; their figures are not tested."""

import json
import os
import sys

import commands
import pytest
import scripts
import wandering

SMALL = commands.ROOT / "examples" / "collision" / "small.py"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    collision = ["--dest", str(folder / "collision"), "--grid", "2", "--colours", "2", "--steps", "500"]
    scripts.load("collision").main(collision)
    copy = ["--dest", str(folder / "copy"), "--count", "4", "--distance", "5", "20", "--episodes", "200"]
    scripts.load("copy_task").main(copy)
    return folder


@pytest.fixture(scope="module")
def env(tmp_path_factory):
    """An environment with fairseq's commands in its path."""
    env, folder = commands.environment(OMP_NUM_THREADS="1"), tmp_path_factory.mktemp("small_tools") / "bin"
    env["PATH"] = f"{commands.write_tools(folder, env)}{os.pathsep}{env['PATH']}"
    return env


def test_collisions_beside_fixed_spans(data, env, tmp_path):
    given = [SMALL, data / "collision", "--runs", tmp_path / "runs", "--out", tmp_path / "small.jsonl", "--seeds", "1"]
    options = ["--max-update", "3", "--batch-size", "2", "--num-workers", "0"]
    first = commands.run(sys.executable, *given, *options, cwd=tmp_path, env=env)
    runs = [json.loads(line) for line in (tmp_path / "small.jsonl").read_text().splitlines()]
    assert [(run["model"], run["seed"]) for run in runs] == [("expire_span", 1), ("near", 1), ("far", 1)]
    expire, near, far = runs
    assert all(0 < run["error"] <= 100 for run in runs)
    # A fixed span of n steps has n memories, but for the first ones of a row.
    assert near["memory_size"] <= round(expire["memory_size"]) and far["memory_size"] < 512
    rows = first.splitlines()[-3:]
    assert f"{expire['error']:.1f} %" in rows[0] and f"| {far['memory_size']:.0f} |" in rows[2]
    # What is recorded is not made again.
    again = commands.run(sys.executable, *given, *options, cwd=tmp_path, env=env)
    assert again.splitlines()[-3:] == rows and len((tmp_path / "small.jsonl").read_text().splitlines()) == 3


def test_a_run_that_fails_names_its_log(data, env, tmp_path):
    given = [SMALL, data / "collision", "--runs", tmp_path / "runs", "--out", tmp_path / "small.jsonl"]
    output = commands.run(sys.executable, *given, "--max-span", "0", cwd=tmp_path, env=env, code=1)
    assert "failed: see log.txt" in output.splitlines()[-1]
    assert "max_span is the longest span" in (tmp_path / "runs" / "expire_span_1" / "log.txt").read_text()


def test_the_copy_task(data, env, tmp_path):
    script = commands.ROOT / "examples" / "copy" / "small_expire_span.sh"
    output = commands.run(
        "bash", script, data / "copy", tmp_path / "ck", "--max-update", "3", "--num-workers", "0", cwd=tmp_path, env=env
    )
    assert "test_answer_error" in output


def test_moves_of_the_spans(tmp_path):
    """Each run is made once; the estimate is a bound of the moves that are measured."""
    out = tmp_path / "moves.jsonl"
    given = ["--out", str(out), "--updates", "70", "--max-spans", "64", "--inits", "half", "--scales", "1", "8"]
    wandering.main([*given, "--seeds", "1"])
    runs = [json.loads(line) for line in out.read_text().splitlines()]
    assert [run["scale"] for run in runs] == [1, 8]
    for run in runs:
        assert 0 < run["step"] < run["expected"] and run["step"] < run["largest"]
        assert 0 < run["memory"] < 64 + wandering.RAMP and 0 < run["right"] < 1
    # A larger scale makes spans move less.
    assert runs[1]["step"] < runs[0]["step"]
    wandering.main([*given, "--seeds", "1"])
    assert len(out.read_text().splitlines()) == 2
