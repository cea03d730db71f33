"""The benchmarks run, and compare what they say they compare; their figures are for the README, not for a test."""
import json
import sys

import commands

FOLDER = commands.ROOT / "examples" / "efficiency"


def results(output):
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def test_speed_beside_fairseq_preprocess(tmp_path):
    text = tmp_path / "text"
    text.write_text("some words \u20ac\n\n  and more of them\n" * 200)
    rows = results(commands.run(sys.executable, FOLDER / "binarize_speed.py", text, "--runs", "1", "--json"))
    assert [(row["level"], row["workers"], row["identical"]) for row in rows] == [("bytes", 1, False), ("chars", 1, False), ("words", 1, True)]
    assert all(row["bytes"] == text.stat().st_size for row in rows)
    assert all(abs(row["our_bytes_per_second"] / row["fairseq_bytes_per_second"] / row["ratio"] - 1) < 1e-6 for row in rows)


def test_memory_of_a_generated_text():
    command = [FOLDER / "binarize_memory.py", "--megabytes", "1", "--vocabulary", "2000", "--levels", "words", "--json"]
    [row] = results(commands.run(sys.executable, *command))
    assert row["text_bytes"] > 1e6 and row["imports_mb"] > 50 and -50 < row["above_mb"] < 400
