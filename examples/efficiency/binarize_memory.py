"""Measures the peak memory of binarizing a generated text of any size, above the interpreter with its imports.

The memory is that of all processes together: the sum of their proportional set sizes (shared pages count once).
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "data_prep" / "text.py"
# Seconds between two measurements.
INTERVAL = 0.05


def generate(path: Path, *, num_bytes: int, vocabulary: int) -> None:
    """Writes lines of words: every word of the vocabulary at least once, and more of them as Zipf's law has it."""
    rng = np.random.default_rng(0)
    names = np.array([f"w\u00f6rd{number:x}" for number in range(vocabulary)], dtype=object)
    written = 0
    with open(path, "w", encoding="utf-8") as file:
        for start in range(0, vocabulary, 10):
            written += file.write(" ".join(names[start : start + 10]) + "\n")
        while written < num_bytes:
            # Natural text follows this law, too.
            ranks = np.minimum(rng.zipf(1.2, size=1_000_000), vocabulary) - 1
            words = names[ranks].tolist()
            lines = [" ".join(words[start : start + 20]) for start in range(0, len(words), 20)]
            written += file.write("\n".join(lines) + "\n")


def tree(pid: int) -> list[int]:
    """The ids of a process and its descendants."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    try:
        return [pid, *(other for child in children.read_text().split() for other in tree(int(child)))]
    except OSError:
        return []


def memory(pid: int) -> int:
    """The memory of a process and its descendants, in bytes."""
    total = 0
    for process in tree(pid):
        try:
            for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
        except OSError:
            # The process has ended in the meantime.
            continue
    return total


def peak(command: list[str]) -> int:
    """Runs a command, and returns the peak of its memory in bytes."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    most = 0
    while process.poll() is None:
        most = max(most, memory(process.pid))
        time.sleep(INTERVAL)
    if process.returncode:
        sys.exit(process.stderr.read().decode())
    return most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=2000.0, help="size of the text (default: 2000)")
    parser.add_argument("--vocabulary", type=int, default=300_000, help="different words in it (default: 300000)")
    parser.add_argument("--levels", nargs="+", default=["bytes", "chars", "words"], help="default: bytes chars words")
    parser.add_argument("--workers", type=int, default=2, help="default: 2")
    parser.add_argument("--folder", help="where to put the text and the data (default: a temporary folder)")
    parser.add_argument("--json", action="store_true", help="print a JSON object for each level")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        text, dest = Path(folder, "text"), Path(folder, "data")
        generate(text, num_bytes=int(args.megabytes * 1e6), vocabulary=args.vocabulary)
        imports = peak([sys.executable, str(SCRIPT), "--help"])
        for level in args.levels:
            options = ["--level", level, "--train", str(text), "--dest", str(dest), "--workers", str(args.workers)]
            above = (peak([sys.executable, str(SCRIPT), *options]) - imports) / 1e6
            shutil.rmtree(dest)
            result = {"level": level, "text_bytes": text.stat().st_size, "imports_mb": imports / 1e6, "above_mb": above}
            if args.json:
                print(json.dumps(result), flush=True)
            else:
                size = result["text_bytes"] / 1e6
                print(
                    f"{level:<6} {size:.0f} MB of text: {above:.0f} MB above the {imports / 1e6:.0f} MB of imports",
                    flush=True,
                )


if __name__ == "__main__":
    main()
