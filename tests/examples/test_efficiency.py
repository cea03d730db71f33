"""The benchmarks run and measure what they claim; their figures are not tested."""

import json
import os
import sys

import commands
import compare
import pytest

FOLDER = commands.ROOT / "examples" / "efficiency"


def results(output):
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def test_speed_beside_fairseq_preprocess(tmp_path):
    text = tmp_path / "text"
    text.write_text("some words \u20ac\n\n  and more of them\n" * 200)
    rows = results(commands.run(sys.executable, FOLDER / "binarize_speed.py", text, "--runs", "1", "--json"))
    assert [(row["level"], row["workers"], row["identical"]) for row in rows] == [
        ("bytes", 1, False),
        ("chars", 1, False),
        ("words", 1, True),
    ]
    assert all(row["bytes"] == text.stat().st_size for row in rows)
    assert all(
        abs(row["our_bytes_per_second"] / row["fairseq_bytes_per_second"] / row["ratio"] - 1) < 1e-6 for row in rows
    )


def test_memory_of_a_generated_text():
    command = [FOLDER / "binarize_memory.py", "--megabytes", "1", "--vocabulary", "2000", "--levels", "words", "--json"]
    [row] = results(commands.run(sys.executable, *command))
    assert row["text_bytes"] > 1e6 and row["imports_mb"] > 50 and -50 < row["above_mb"] < 400


def test_speed_and_memory_of_a_block():
    options = ["--width-divisor", "16", "--rounds", "2", "--cases", "3", "--json", "--profile"]
    # Not every container allows a process to reset its own peak.
    with_memory = os.access("/proc/self/clear_refs", os.W_OK)
    rows = results(commands.run(sys.executable, FOLDER / "speed.py", *options, *[] if with_memory else ["--no-memory"]))
    assert [(row["case"], row["mode"]) for row in rows] == [
        ("4 rows, mean span 64, spread widely", "train"),
        ("4 rows, mean span 64, spread widely", "score"),
    ]
    for row in rows:
        ours, fixed = row["subjects"]["expire_span"], row["subjects"]["fixed_span"]
        # As many states are alive as the case says: the span, and a part of the ramp.
        assert all(64 < alive < 1.5 * 64 for alive in ours["alive"]) and fixed["alive"] == [64, 64]
        assert ours["limit"] < ours["seconds"] and (ours["peak_bytes"] > 0 if with_memory else "peak_bytes" not in ours)
        assert 0.5 < sum(row["profile"].values()) <= 1 and "aten::mm" in row["profile"]


def test_operations_are_those_of_the_products():
    """PyTorch counts the operations of a fixed span, too; its count includes what is computed twice."""
    script = f"""
import math
import sys
import torch
sys.path.insert(0, {str(FOLDER)!r})
from torch.utils.flop_counter import FlopCounterMode
from fairseq_expire.modules.attention import fused, tiled
from limit import operations
from subjects import Shape, blocks, fixed_span
# Memories are sorted for small blocks, too, so that expired ones cost nothing.
tiled.MIN_QUERIES_TO_SORT = 1
# PyTorch does not count the operations of its fused kernel on a CPU.
fused._kernel_works = lambda dtype: False
# Of the products that add to a matrix, it counts only those that make a new one.
in_place = {{torch.ops.aten.baddbmm_: lambda total, left, right, **rest: 2 * math.prod(left) * right[-1]}}
shape = Shape(rows=2, span=64, max_span=64, ramp=8, width=64, ffn=256, block=32)
for mode in ("score", "train"):
    model = fixed_span(shape)
    *before, block = blocks(shape, 6)
    for earlier in before:
        getattr(model, mode)(earlier)
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        getattr(model, mode)(block)
    print(mode, operations(shape, model, training=mode == "train") / counter.get_total_flops())
"""
    shares = dict(
        line.split()
        for line in commands.run(sys.executable, "-c", script).splitlines()
        if line[:5] in ("score", "train")
    )
    assert 0.9 < float(shares["score"]) <= 1.0 and 0.9 < float(shares["train"]) <= 1.0


def test_growth_and_its_picture(tmp_path):
    options = ["--rounds", "1", "--parts", "stream", "--bytes", "70000", "--json"]
    output = commands.run(sys.executable, FOLDER / "growth.py", *options)
    rows = results(output)
    assert len(rows) > 1 and rows[-1]["bytes"] >= 70000 and rows[0]["memory"] > 0
    rows += [{"part": "tokens", "alive": 3.0, "token_seconds": 1.0, "block_seconds": 30.0}]
    rows += [
        {"part": part, "max_span": 9, "alive": 3.0, "mode": mode, "seconds": 1.0, "peak_bytes": 5}
        for part in ("max-span", "alive")
        for mode in ("train", "score")
    ]
    (tmp_path / "growth.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    commands.run(sys.executable, FOLDER / "curves.py", tmp_path / "growth.jsonl", "--dest", tmp_path / "growth.svg")
    assert "<svg" in (tmp_path / "growth.svg").read_text()


def test_comparison_of_memories_on_one_text(data_bin, tmp_path, monkeypatch, capsys):
    """A model of ours and fairseq's own example are trained, scored and timed; a second call finds their results."""
    arguments = [
        str(data_bin), "--dest", str(tmp_path), "--archs", "compressive_transformer_lm", "adaptive_span",
        "--sizes", "1", "--seeds", "3", "--updates", "2", "--json",
    ]  # fmt: skip

    def command(name, *arguments, log):
        return commands.run(commands.tool(name), *arguments, cwd=commands.ROOT)

    with monkeypatch.context() as patched:
        patched.setattr(compare, "command", command)
        compare.main([*arguments, "--rounds", "0"])
    rows = results(capsys.readouterr().out)
    assert [(row["arch"], row["size"], row["seed"]) for row in rows] == [
        ("compressive_transformer_lm", 1, 3), ("adaptive_span", 1, 3)
    ]  # fmt: skip
    for row in rows:
        # Two updates learn little of a text of 60,000 bytes.
        assert 4 < row["bits"] < 9
    # At most 16 states and 16 compressed memories, fewer at the start of a text; the span of fairseq's longest head.
    assert 24 < rows[0]["memory_size"] <= 32 and 100 < rows[1]["memory_size"] < 200
    if not os.access("/proc/self/clear_refs", os.W_OK):
        return
    again = results(commands.run(sys.executable, FOLDER / "compare.py", *arguments, "--rounds", "1"))
    assert [{name: row[name] for name in rows[0]} for row in again] == rows
    assert all(row["seconds"] > 0 and row["peak_bytes"] > 0 for row in again)


def test_commands_of_the_comparison(tmp_path):
    log = tmp_path / "log"
    # One thread, since several runs are made at a time.
    script = "import os; print(os.environ['OMP_NUM_THREADS'])"
    assert compare.command("python", "-c", script, log=log) == log.read_text() == "1\n"
    with pytest.raises(SystemExit, match=r"python failed, see .*log:\nout of luck"):
        compare.command("python", "-c", "import sys; sys.exit('out of luck')", log=log)


def test_trade_off_is_drawn(tmp_path):
    rows = [
        {"arch": arch, "size": size, "seed": seed, "bits": 3 - size / 10 + seed / 100, "memory_size": 10.0**size}
        for arch in ("expire_span_lm", "transformer_xl_lm")
        for size in (1, 2)
        for seed in (1, 2)
    ]
    (tmp_path / "rows").write_text("".join(json.dumps(row) + "\n" for row in rows))
    draw = [sys.executable, FOLDER / "tradeoff.py", f"a text={tmp_path / 'rows'}", "--dest", tmp_path / "drawn.svg"]
    commands.run(*draw)
    picture = (tmp_path / "drawn.svg").read_text()
    # Titles and names of lines are drawn as paths with a comment.
    assert picture.count("<!-- a text -->") == 1 and picture.count("<!-- expire_span_lm -->") == 1
    (tmp_path / "rows").write_text('{"arch": "x"}\n')
    assert "line 1: not a line of compare.py --json" in commands.run(*draw, code=2)


def test_threads():
    # PyTorch's default would take minutes on a busy machine.
    ways = ["let_waiting_threads_sleep()", "one thread"]
    printed = commands.run(
        sys.executable, FOLDER / "threads.py", "--steps", "1", "--rounds", "1", "--width", "16", "--ways", *ways
    )
    header, *rows = printed.strip().splitlines()
    assert header.split() == ["quiet", "1", "busy"]
    ratios = {row[:30].strip(): [float(number) for number in row[30:].split()] for row in rows}
    assert list(ratios) == ways
    assert ratios[ways[0]][0] == 1 and all(number > 0 for row in ratios.values() for number in row)
