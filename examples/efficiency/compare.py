"""Compares the cost of a batch with the quality of predictions for every kind of memory (the paper's table 4, figures 7
and 11).

All are trained on one text with the same base model and the same updates, in several sizes and with several seeds.

    python examples/efficiency/compare.py DATA --dest DIR

Each run is the real fairseq-train and fairseq-validate, in a folder of DIR; runs with a result there are not repeated.
Time (forward and backward) and memory are measured at the end, when nothing else runs: all models in turns in one
process.

Our models have the same base, positions included: attention knows distances up to the length of a block.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import fairseq
import torch
from fairseq import checkpoint_utils, tasks, utils
from peak import peak_of

import fairseq_expire

# The task and the architectures that checkpoints name.
fairseq_expire.register()

PEER = Path(fairseq.__file__).parent / "examples" / "adaptive_span"
BLOCK, ROWS = 64, 16
SCORING_ROWS = 8

TRAINING = f"""
--cpu --optimizer adam --adam-betas (0.9,0.98) --lr 0.004 --lr-scheduler cosine --warmup-updates 50 --clip-norm 0.3
--tokens-per-sample {BLOCK} --batch-size {ROWS} --num-workers 0 --disable-validation --no-epoch-checkpoints
--log-format json --log-interval 50
""".split()
OURS = f"""
--user-dir fairseq_expire --task memory_caching_lm --criterion expire_span_loss
--decoder-layers 2 --decoder-embed-dim 64 --decoder-ffn-embed-dim 256 --decoder-attention-heads 2 --dropout 0
--decoder-normalize-before --position-range {BLOCK}
""".split()
THEIRS = f"""
--user-dir {PEER} --task truncated_bptt_lm --criterion adaptive_span_loss
--n-layer 2 --d-model 64 --d-inner 256 --n-head 2 --dropout 0
""".split()

# Three sizes of each, small to large. A memory of fixed size is given the size, one that learns its size a price.
PRICES = ("1e-3", "1e-4", "1e-5")
CONFIGURATIONS: dict[str, list[str]] = {
    "transformer_xl_lm": [f"--max-span {size}" for size in (32, 96, 288)],
    # As many memories as with the fixed span; half of them stand for four states each.
    "compressive_transformer_lm": [f"--max-span {size} --compressed-size {size}" for size in (16, 48, 144)],
    "adaptive_span_lm": [
        f"--max-span 512 --span-ramp 16 --span-init 128 --expire-loss-weight {price}" for price in PRICES
    ],
    "expire_span_lm": [
        f"--max-span 1024 --span-ramp 16 --span-init 128 --span-input-scale 2 --expire-loss-weight {price}"
        for price in PRICES
    ],
    # The Adaptive-Span of fairseq's examples.
    "adaptive_span": [
        f"--attn-span 512 --adapt-span-ramp 16 --adapt-span-init 0.25 --aux-loss-scaler {price}" for price in PRICES
    ],
}


@dataclass(frozen=True)
class Run:
    """A training run: architecture, size (1 to 3) and seed."""

    arch: str
    size: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.arch}-{self.size}-{self.seed}"

    @property
    def is_ours(self) -> bool:
        return self.arch != "adaptive_span"

    @property
    def options(self) -> list[str]:
        return [
            "--arch",
            self.arch,
            *(OURS if self.is_ours else THEIRS),
            *CONFIGURATIONS[self.arch][self.size - 1].split(),
        ]


def command(name: str, *arguments: object, log: Path) -> str:
    """Runs a command of fairseq with one thread. Returns its output; raises SystemExit if it fails."""
    path = Path(sys.executable).with_name(name)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(log, "w+", encoding="utf-8") as output:
        done = subprocess.run(
            [str(path), *map(str, arguments)], stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        output.seek(0)
        text = output.read()
    if done.returncode:
        raise SystemExit(f"{name} failed, see {log}:\n{text[-1000:]}")
    return text


def last_line(text: str, tag: str) -> dict[str, str]:
    """Returns the last JSON line that fairseq logged under a tag."""
    return json.loads(re.findall(rf"\| INFO \| {tag} \| (\{{.*\}})", text)[-1])


def train_and_score(run: Run, data: Path, dest: Path, updates: int) -> dict[str, object]:
    """Makes a run, if its folder has no result yet.

    Returns:
        the run, bits per token of the test text (``bits``), and the mean number of memories that a query of a layer
        saw.
    Raises:
        SystemExit: if the folder holds another run, or a command fails.
    """
    folder = dest / run.name
    result = folder / "result.json"
    settings = {"data": str(data), "updates": updates, "options": " ".join([*run.options, *TRAINING])}
    if result.exists():
        found = json.loads(result.read_text())
        if found.pop("settings") != settings:
            raise SystemExit(
                f"{folder} holds a run with other data, updates or options: give another --dest, or remove it"
            )
        return found
    folder.mkdir(parents=True, exist_ok=True)
    command(
        "fairseq-train", data, *run.options, *TRAINING, "--max-update", updates, "--seed", run.seed,
        "--save-dir", folder, log=folder / "train.log",
    )  # fmt: skip
    checkpoint = folder / "checkpoint_last.pt"
    if run.is_ours:
        text = command(
            "fairseq-validate", data, "--path", checkpoint, "--user-dir", "fairseq_expire",
            "--task", "memory_caching_lm", "--valid-subset", "test", "--cpu", "--batch-size", SCORING_ROWS,
            "--tokens-per-sample", BLOCK, "--log-format", "json", log=folder / "test.log",
        )  # fmt: skip
        stats = last_line(text, "test")
        bits, memory = float(stats["test_nll_loss"]), float(stats["test_memory_size"])
    else:
        text = command(
            "fairseq-eval-lm", data, "--path", checkpoint, "--user-dir", PEER, "--task", "truncated_bptt_lm",
            "--gen-subset", "test", "--cpu", "--batch-size", SCORING_ROWS, "--tokens-per-sample", BLOCK,
            log=folder / "test.log",
        )  # fmt: skip
        bits = float(re.search(r"Loss \(base 2\): ([\d.]+)", text)[1])
        memory = seen_by_the_peer(checkpoint)
    found = {"arch": run.arch, "size": run.size, "seed": run.seed, "bits": bits, "memory_size": memory}
    part = result.with_suffix(".part")
    part.write_text(json.dumps({**found, "settings": settings}))
    part.replace(result)
    return found


def seen_by_the_peer(checkpoint: Path) -> float:
    """Returns the number of states that the longest head of fairseq's example sees, in the mean over layers."""
    state = checkpoint_utils.load_checkpoint_to_cpu(str(checkpoint))
    cfg = state["cfg"].model
    ratios = [value.max().item() for name, value in state["model"].items() if name.endswith("_mask.current_val")]
    return statistics.mean(min(cfg.attn_span, cfg.attn_span * ratio + cfg.adapt_span_ramp) for ratio in ratios)


class Trained:
    """A trained model and batches of the text, for timed training steps.

    Args:
        run: the run.
        data: the data-bin.
        dest: the folder of all runs.
        steps: number of batches.
    """

    def __init__(self, run: Run, data: Path, dest: Path, steps: int):
        if not run.is_ours:
            utils.import_user_module(argparse.Namespace(user_dir=str(PEER)))
        # fairseq's own loader of models fails with its example, whose task lacks an argument.
        state = checkpoint_utils.load_checkpoint_to_cpu(str(dest / run.name / "checkpoint_last.pt"))
        cfg = state["cfg"]
        self.task = tasks.setup_task(cfg.task)
        self.model = self.task.build_model(cfg.model)
        self.model.load_state_dict(state["model"], strict=True, model_cfg=cfg.model)
        self.criterion = self.task.build_criterion(cfg.criterion)
        self.model.train()
        self.task.load_dataset("train")
        iterator = self.task.get_batch_iterator(self.task.dataset("train"), max_sentences=ROWS, epoch=1)
        # Read in advance, so that reading is not timed.
        self.batches = iter(list(itertools.islice(iterator.next_epoch_itr(shuffle=False), steps)))

    def step(self) -> float:
        """Returns the seconds of a forward and backward pass over the next batch."""
        sample = next(self.batches)
        start = time.perf_counter()
        self.model.zero_grad(set_to_none=True)
        loss, _, _ = self.criterion(self.model, sample)
        loss.backward()
        return time.perf_counter() - start


def warm_steps(longest: int = 1024) -> int:
    """Returns the number of batches after which a memory has about its final size."""
    return -(-longest // BLOCK) + 2


def _peak(run: Run, data: Path, dest: Path, threads: int) -> int:
    torch.set_num_threads(threads)
    trained = Trained(run, data, dest, warm_steps() + 2)
    return peak_of(trained.step, before=warm_steps())


def measure_cost(runs: list[Run], data: Path, dest: Path, rounds: int) -> dict[Run, dict[str, float]]:
    """Returns the median seconds of a training step, measured in turns, and the peak memory, for each run."""
    models = {run: Trained(run, data, dest, warm_steps() + rounds) for run in runs}
    times: dict[Run, list[float]] = {run: [] for run in runs}
    for trained in models.values():
        for _ in range(warm_steps()):
            trained.step()
    for _ in range(rounds):
        for run, trained in models.items():
            times[run].append(trained.step())
    cost = {}
    for run in runs:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peak = pool.apply(_peak, (run, data, dest, torch.get_num_threads()))
        cost[run] = {"seconds": statistics.median(times[run]), "peak_bytes": peak}
    return cost


def show(rows: list[dict[str, object]]) -> None:
    """Prints a line for each architecture and size with means over seeds; time is relative to the first line."""
    print(f"{'':<32}{'bits/token':>11}{'seeds apart':>13}{'memory size':>13}{'time':>8}{'peak MB':>9}")
    first = None
    for arch in CONFIGURATIONS:
        for size in (1, 2, 3):
            some = [row for row in rows if (row["arch"], row["size"]) == (arch, size)]
            if not some:
                continue
            bits = [row["bits"] for row in some]
            line = f"{arch + ' ' + str(size):<32}{statistics.mean(bits):>11.3f}{max(bits) - min(bits):>13.3f}"
            line += f"{statistics.mean(row['memory_size'] for row in some):>13.0f}"
            timed = [row for row in some if "seconds" in row]
            if timed:
                first = first or timed[0]["seconds"]
                line += f"{timed[0]['seconds'] / first:>7.2f}x{timed[0]['peak_bytes'] / 1e6:>9.1f}"
            print(line)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a data-bin with train and test")
    parser.add_argument("--dest", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--archs", nargs="+", choices=CONFIGURATIONS, default=list(CONFIGURATIONS), help="default: all")
    parser.add_argument("--sizes", type=int, nargs="+", choices=(1, 2, 3), default=[1, 2, 3], help="default: 1 2 3")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2], help="default: 1 2")
    parser.add_argument("--updates", type=int, default=1200, help="of every run (default: 1200)")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="runs at a time, a thread each (default: one a core)"
    )
    parser.add_argument("--rounds", type=int, default=15, help="steps on the clock; 0: measure no cost (default: 15)")
    parser.add_argument("--json", action="store_true", help="print a JSON object for each run instead of a table")
    args = parser.parse_args(arguments)
    if not (args.data / "dict.txt").exists():
        parser.error(f"{args.data}: expected a data-bin made by a script of data_prep, with a dict.txt")
    # Other processes may have another current folder.
    data, dest = args.data.resolve(), args.dest.resolve()
    # The largest first, so that no core waits long at the end.
    runs = [Run(arch, size, seed) for size in sorted(args.sizes)[::-1] for arch in args.archs for seed in args.seeds]
    with ThreadPoolExecutor(args.jobs) as pool:
        rows = dict(zip(runs, pool.map(lambda run: train_and_score(run, data, dest, args.updates), runs)))
    if args.rounds:
        for run, cost in measure_cost(
            [run for run in runs if run.seed == args.seeds[0]], data, dest, args.rounds
        ).items():
            rows[run].update(cost)
    ordered = sorted(rows.values(), key=lambda row: (list(CONFIGURATIONS).index(row["arch"]), row["size"], row["seed"]))
    if args.json:
        for row in ordered:
            print(json.dumps(row))
    else:
        show(ordered)


if __name__ == "__main__":
    main()
