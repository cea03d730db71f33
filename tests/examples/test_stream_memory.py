"""The memory of a stream stays bounded over a text that is long compared with its spans."""

import json
import sys

import commands

SCRIPT = commands.ROOT / "examples" / "efficiency" / "stream_memory.py"


def test_memory_of_a_long_stream():
    options = ["--width", "16", "--bytes", "30000", "--part", "1000", "--json"]
    rows = [
        json.loads(line) for line in commands.run(sys.executable, SCRIPT, *options).splitlines() if line.startswith("{")
    ]
    assert len(rows) == 24 and rows[-1]["bytes"] == 30000 and all(row["written"] for row in rows)
    # Spans are a few hundred steps; all states would be many times as many as the alive ones.
    assert max(row["states"] for row in rows) < 1000
    # Two layers of keys and values of width 16, each with a span and an age, with room to grow and for a block.
    assert max(row["memory"] for row in rows) < 2 * (1000 + 64 + 512) * (2 * 16 * 4 + 4 + 8)
    assert rows[-1]["resident"] - rows[3]["resident"] < 8 << 20
