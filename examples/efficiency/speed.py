"""The speed of reading a block, in training and in scoring, against its arithmetic and against a peer.

All models read the same stream, one block each in turns, in one process, and medians are compared. The peer has the
weights of our Expire-Span model. The limit is the number of floating-point operations of the block divided by the rate
of a large matrix product, which is measured in the same turns.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from limit import operations
from peak import peak_memory
from subjects import SUBJECTS, Ours, Shape, Subject, blocks

CASES = (
    Shape(rows=2, span=512),
    Shape(rows=2, span=2048),
    Shape(rows=4, span=1024, spread=1.0, rows_spread=0.75),
)
MODES = {"train": "training step", "score": "scoring"}
PRODUCT = 2048
# Number of operations in a profile.
PROFILED = 16


def seconds(work: Callable[[], object]) -> float:
    """Returns the duration of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(subjects: list[Subject], shape: Shape, mode: str, rounds: int) -> dict[str, object]:
    """Measures all models: median seconds, the limit, and the sizes of their memories."""
    warm = shape.blocks_to_fill
    stream = blocks(shape, warm + rounds)
    matrix = torch.randn(PRODUCT, PRODUCT)
    for subject in subjects:
        subject.restart()
        for block in stream[:warm]:
            getattr(subject, mode)(block)
    times: dict[str, list[float]] = {subject.name: [] for subject in subjects}
    products, difference = [], None
    needed: dict[str, list[float]] = {subject.name: [] for subject in subjects}
    for block in stream[warm:]:
        products.append(seconds(lambda: torch.mm(matrix, matrix)))
        outputs = {}
        for subject in subjects:
            start = time.perf_counter()
            outputs[subject.name] = getattr(subject, mode)(block)
            times[subject.name].append(time.perf_counter() - start)
            # The peer has the same alive memories as our Expire-Span model.
            model = subject if isinstance(subject, Ours) else subjects[0]
            needed[subject.name].append(operations(shape, model, training=mode == "train"))
        if mode == "score" and "transformer-sequential" in outputs:
            gap = (outputs["expire_span"] - outputs["transformer-sequential"]).abs().max()
            difference = gap if difference is None else torch.maximum(difference, gap)
    rate = 2 * PRODUCT**3 / statistics.median(products)
    return {
        "case": shape.label,
        "mode": mode,
        "product_gflops": rate / 1e9,
        "largest_difference": None if difference is None else difference.item(),
        "subjects": {
            subject.name: {
                "seconds": statistics.median(times[subject.name]),
                "limit": statistics.median(needed[subject.name]) / rate,
                "tokens_per_second": shape.rows * shape.block / statistics.median(times[subject.name]),
                "alive": subject.alive(),
                "slots": subject.slots(),
            }
            for subject in subjects
        },
    }


def profile(subject: Subject, shape: Shape, mode: str, rounds: int) -> dict[str, float]:
    """Returns the share of time of each operation while the model reads on, the largest first."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for block in blocks(shape, rounds):
            getattr(subject, mode)(block)
    times = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    total = sum(times.values())
    return {name: times[name] / total for name in sorted(times, key=times.get, reverse=True)[:PROFILED]}


def show(result: dict[str, object]) -> None:
    """Prints a table for a case and mode."""
    subjects = result["subjects"]
    ours = subjects["expire_span"]
    print(f"\n{result['case']}: {MODES[result['mode']]}")
    print(f"{'':<24}{'tokens/s':>10}{'x limit':>9}{'/ ours':>9}{'peak MB':>9}  alive memories by layer (slots)")
    for name, one in subjects.items():
        ratio = one["seconds"] / ours["seconds"]
        peak = f"{one['peak_bytes'] / 1e6:.0f}" if "peak_bytes" in one else "-"
        sizes = ", ".join(f"{size:.0f} ({slots})" for size, slots in zip(one["alive"], one["slots"]))
        print(
            f"{name:<24}{one['tokens_per_second']:>10.0f}{one['seconds'] / one['limit']:>9.2f}{ratio:>8.2f}x{peak:>9}  "
            f"{sizes}"
        )
    for name, share in result.get("profile", {}).items():
        print(f"  {share:>6.1%}  {name}")
    if result["largest_difference"] is not None:
        print(
            "largest difference between the log-probabilities of ours and the peer's: "
            f"{result['largest_difference']:.1e}"
        )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--peer", metavar="NAME=PATH", help="transformer-sequential=PATH: a checkout of the published code"
    )
    parser.add_argument(
        "--cases", type=int, nargs="+", default=[1, 2, 3], help="which rows of the table (default: 1 2 3)"
    )
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="default: train score")
    parser.add_argument("--rounds", type=int, default=15, help="blocks that each reads on the clock (default: 15)")
    parser.add_argument(
        "--no-memory", action="store_true", help="leave out peak memory, for which each runs alone again"
    )
    parser.add_argument("--profile", action="store_true", help="print where the time of expire_span goes")
    parser.add_argument(
        "--width-divisor", type=int, default=1, help="a smaller model, spans and blocks, for a quick look"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object for each case and mode")
    args = parser.parse_args(arguments)
    checkout = None
    if args.peer is not None:
        name, _, checkout = args.peer.partition("=")
        if name != "transformer-sequential" or not checkout:
            parser.error(f"--peer: expected transformer-sequential=PATH, got {args.peer}")
    if not set(args.cases) <= set(range(1, len(CASES) + 1)):
        parser.error(f"--cases: there are cases 1 to {len(CASES)}, got {args.cases}")
    names = [name for name in SUBJECTS if checkout or name != "transformer-sequential"]
    for number in args.cases:
        shape = CASES[number - 1].smaller(args.width_divisor)
        subjects = [SUBJECTS[name](shape, checkout) for name in names]
        for mode in args.modes:
            result = measure(subjects, shape, mode, args.rounds)
            if not args.no_memory:
                for name in names:
                    result["subjects"][name]["peak_bytes"] = peak_memory(name, shape, mode, checkout)
            if args.profile:
                result["profile"] = profile(subjects[0], shape, mode, args.rounds)
            if args.json:
                print(json.dumps(result), flush=True)
            else:
                show(result)


if __name__ == "__main__":
    main()
