"""Compares the speed of binarizing with that of fairseq-preprocess, on the same text in one run.

Both are called in this process, so that loading Python and fairseq, which takes seconds, counts for neither. For bytes
and characters fairseq-preprocess needs a text with spaces between symbols. Making it does not count, and rates are in
bytes of the original text. The two take turns, and the medians are compared.
"""

import argparse
import contextlib
import io
import json
import logging
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

logging.disable(logging.INFO)

from fairseq import options  # noqa: E402
from fairseq_cli import preprocess  # noqa: E402

from fairseq_expire.corpora.binarize import Job, binarize  # noqa: E402
from fairseq_expire.corpora.sources import find_files  # noqa: E402
from fairseq_expire.tokenizers.bound import make_tokenizer  # noqa: E402
from fairseq_expire.tokenizers.bytes_and_chars import byte_symbol, char_symbol  # noqa: E402

FILES = ("dict.txt", "train.bin", "train.idx")


def spaced(text: bytes, level: str) -> str:
    """The text with spaces between symbols, and with the same lines."""
    if level == "words":
        return text.decode("utf-8")
    names = {"bytes": byte_symbol, "chars": char_symbol}[level]
    symbols = text if level == "bytes" else map(ord, text.decode("utf-8"))
    cache: dict[int, str] = {}
    newline = names(0x0A)
    parts = [cache.get(symbol) or cache.setdefault(symbol, names(symbol)) for symbol in symbols]
    return " ".join(parts).replace(f"{newline} ", f"{newline}\n")


def fairseq_seconds(source: Path, dest: Path, workers: int) -> float:
    parser = options.get_preprocessing_parser()
    arguments = ["--only-source", "--trainpref", str(source), "--destdir", str(dest), "--workers", str(workers)]
    args = parser.parse_args(arguments)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return seconds(lambda: preprocess.main(args))


def our_seconds(source: Path, dest: Path, level: str, workers: int) -> float:
    shutil.rmtree(dest, ignore_errors=True)
    dest.mkdir()
    job = Job(splits={"train": find_files([str(source)])}, tokenizer=make_tokenizer(level, {}))
    return seconds(lambda: binarize(job, dest, workers=workers))


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(text: bytes, level: str, *, workers: int, runs: int, folder: Path) -> dict[str, object]:
    source, spaced_source = folder / "text", folder / "spaced"
    source.write_bytes(text)
    spaced_source.write_text(spaced(text, level), encoding="utf-8", newline="")
    theirs: list[float] = []
    ours: list[float] = []
    for _ in range(runs):
        shutil.rmtree(folder / "fairseq", ignore_errors=True)
        theirs.append(fairseq_seconds(spaced_source, folder / "fairseq", workers))
        # Several of ours for each of theirs, since short times are noisy.
        ours.extend(our_seconds(source, folder / "ours", level, workers) for _ in range(3))
    identical = level == "words" and all(
        (folder / "fairseq" / name).read_bytes() == (folder / "ours" / name).read_bytes() for name in FILES
    )
    return {
        "level": level,
        "workers": workers,
        "bytes": len(text),
        "fairseq_bytes_per_second": len(text) / statistics.median(theirs),
        "our_bytes_per_second": len(text) / statistics.median(ours),
        "ratio": statistics.median(theirs) / statistics.median(ours),
        "identical": identical,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", help="a file, UTF-8")
    parser.add_argument("--megabytes", type=float, default=20.0, help="read no more of it than that (default: 20)")
    parser.add_argument("--runs", type=int, default=3, help="runs of fairseq-preprocess for each level (default: 3)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1], help="how many to compare with (default: 1)")
    parser.add_argument("--json", action="store_true", help="print a JSON object for each comparison")
    args = parser.parse_args()
    with open(args.text, "rb") as file:
        text = file.read(int(args.megabytes * 1e6)).decode("utf-8", errors="ignore").encode("utf-8")
    if not args.json:
        print("level  workers  fairseq MB/s  ours MB/s    ratio")
    for level in ("bytes", "chars", "words"):
        for workers in args.workers:
            with tempfile.TemporaryDirectory() as folder:
                result = compare(text, level, workers=workers, runs=args.runs, folder=Path(folder))
            if args.json:
                print(json.dumps(result), flush=True)
                continue
            theirs, ours = result["fairseq_bytes_per_second"] / 1e6, result["our_bytes_per_second"] / 1e6
            same = "  files identical" if result["identical"] else ""
            print(f"{level:<6} {workers:>7} {theirs:>13.3f} {ours:>10.2f} {result['ratio']:>8.1f}{same}", flush=True)


if __name__ == "__main__":
    main()
