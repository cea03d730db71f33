"""Expire-Span on small collisions beside two fixed spans: one with its memory size, one that reaches as far.

    python data_prep/collision.py --dest data-bin/small --grid 2 --colours 2 --steps 600000
    python examples/collision/small.py data-bin/small --runs checkpoints/small --out examples/collision/small.jsonl

Every run is a line of JSON with the error on the test split, in percent, and the mean number of memories a query sees.
Runs that are there already are not made again, and a run that was stopped goes on from its last checkpoint.
"""

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

FOLDER = Path(__file__).resolve().parent
REACH = 512
NAMES = {
    "expire_span": f"Expire-Span, up to {REACH} steps",
    "near": "fixed span of its memory size",
    "far": f"fixed span of {REACH}",
}


def run(script: str, data: Path, save: Path, seed: int, options: list[str]) -> tuple[float, float]:
    """Trains with a script, which validates at its end. Returns error and memory size on the test split."""
    save.mkdir(parents=True, exist_ok=True)
    command = ["bash", str(FOLDER / script), str(data), str(save), "--seed", str(seed), *options]
    with open(save / "log.txt", "a") as log:
        subprocess.run(
            command, stdout=log, stderr=subprocess.STDOUT, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
    lines = [line for line in (save / "log.txt").read_text().splitlines() if '"test_error"' in line]
    values = json.loads(lines[-1][lines[-1].index("{") :])
    return float(values["test_error"]), float(values["test_memory_size"])


class Results:
    """The runs in a file of JSON lines.

    Args:
        path: the file; it need not exist.
    """

    def __init__(self, path: Path):
        self.path = path
        self.runs = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def find(self, model: str, seed: int) -> dict[str, Any] | None:
        """Returns a run, or None if it was not made yet."""
        return next((run for run in self.runs if (run["model"], run["seed"]) == (model, seed)), None)

    def add(self, **values: Any) -> dict[str, Any]:
        """Adds a run to the file."""
        self.runs.append(values)
        with self.path.open("a") as file:
            print(json.dumps(values), file=file)
        return values


def compare(seed: int, data: Path, runs: Path, results: Results, options: list[str]) -> None:
    """Makes the runs of a seed that are missing; the near span follows from Expire-Span's memory size."""

    def made(model: str, script: str, *more: str) -> dict[str, Any]:
        found = results.find(model, seed)
        if found is None:
            error, size = run(script, data, runs / f"{model}_{seed}", seed, [*more, *options])
            found = results.add(model=model, seed=seed, error=error, memory_size=size)
            print(json.dumps(found), flush=True)
        return found

    expire = made("expire_span", "small_expire_span.sh")
    made("near", "small_transformer_xl.sh", "--max-span", str(round(expire["memory_size"])))
    made("far", "small_transformer_xl.sh", "--max-span", str(REACH))


def table(runs: list[dict[str, Any]]) -> str:
    """Returns a table in Markdown, mean and standard deviation over seeds."""
    groups = defaultdict(list)
    for each in runs:
        groups[each["model"]].append(each)
    lines = ["| | test error | memories a query sees |", "|---|---|---|"]
    for model, name in NAMES.items():
        errors, sizes = ([each[key] for each in groups[model]] for key in ("error", "memory_size"))
        if errors:
            spread = f" ± {stdev(errors):.1f}" if len(errors) > 1 else ""
            lines.append(f"| {name} | {mean(errors):.1f} %{spread} | {mean(sizes):.0f} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA_BIN", help="data of data_prep/collision.py, see above")
    parser.add_argument("--runs", type=Path, required=True, metavar="DIR", help="folder of the checkpoints")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="a line of JSON for each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="seeds (default: 1 2 3)")
    parser.add_argument("--jobs", type=int, default=1, help="seeds at a time, one thread each (default: 1)")
    args, options = parser.parse_known_args(arguments)
    results = Results(args.out)
    with ThreadPoolExecutor(args.jobs) as pool:
        jobs = [pool.submit(compare, seed, args.data, args.runs, results, options) for seed in args.seeds]
        try:
            for job in jobs:
                job.result()
        except subprocess.CalledProcessError as error:
            pool.shutdown(cancel_futures=True)
            sys.exit(f"{' '.join(map(str, error.cmd))} failed: see log.txt of the run in {args.runs}")
    print(table(results.runs))


if __name__ == "__main__":
    main()
