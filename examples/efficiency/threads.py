"""The cost of a busy neighbour for training on all cores, for each way in which PyTorch's threads can wait.

A model of the sizes of `make demo` makes training steps, in a process for each way to wait, in turns; first on a quiet
machine, then beside processes that compute all the time. Printed is the mean time of a step, as a multiple of that of
the first way on a quiet machine.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from functools import partial

BUSY = "while True: pass"
# Environment variables of each way to wait.
WAYS: dict[str, dict[str, str]] = {
    "PyTorch's default": {},
    "let_waiting_threads_sleep()": {},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


def step_time(way: str, steps: int, width: int) -> float:
    """Returns the mean seconds of a training step in this process."""
    import torch
    from torch import nn

    from fairseq_expire.modules import ExpireSpan, MemoryTransformer, let_waiting_threads_sleep

    if way == "let_waiting_threads_sleep()":
        let_waiting_threads_sleep()
    torch.manual_seed(0)
    symbols, rows, block = 178, 8, 128
    stack = MemoryTransformer(
        embed_dim=width, num_heads=max(1, width // 64), ffn_dim=4 * width, num_layers=3, position_range=128,
        pre_norm=True,
        policy=partial(ExpireSpan, embed_dim=width, max_span=4096, ramp=32, span_init=32.0, input_scale=8.0),
    )  # fmt: skip
    embedding, output = nn.Embedding(symbols, width), nn.Linear(width, symbols)
    optimizer = torch.optim.Adam(nn.ModuleList([stack, embedding, output]).parameters(), lr=1e-3)
    memory = None
    # The first half warms up: it takes a second or two until a busy neighbour slows a process down.
    for step in range(2 * steps):
        if step == steps:
            start = time.perf_counter()
        tokens = torch.randint(symbols, (rows, block + 1))
        out = stack(embedding(tokens[:, :-1]), memory)
        memory = out.memory
        loss = nn.functional.cross_entropy(output(out.hidden).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (time.perf_counter() - start) / steps


def measured(way: str, steps: int, width: int) -> float:
    """Returns the mean seconds of a training step in a new process."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "MKL_"))}
    command = [sys.executable, __file__, "--steps", str(steps), "--width", str(width), "--way", way]
    return float(
        subprocess.run(command, env={**environment, **WAYS[way]}, stdout=subprocess.PIPE, check=True, text=True).stdout
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=int, default=1, help="processes that compute all the time (default: 1)")
    parser.add_argument(
        "--steps", type=int, default=20, help="training steps of a measurement, after as many (default: 20)"
    )
    parser.add_argument("--width", type=int, default=128, help="of the model (default: 128, as the demo's)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each way (default: 3)")
    parser.add_argument(
        "--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY", help="which ways (default: all)"
    )
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.way:
        print(step_time(args.way, args.steps, args.width))
        return
    medians = {}
    for busy in (0, args.busy):
        times: dict[str, list[float]] = {way: [] for way in args.ways}
        neighbours = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(busy)]
        try:
            for _ in range(args.rounds):
                for way in args.ways:
                    times[way].append(measured(way, args.steps, args.width))
        finally:
            for neighbour in neighbours:
                neighbour.kill()
        for way in args.ways:
            medians[way, busy] = statistics.median(times[way])
    unit = medians[args.ways[0], 0]
    print(f"{'':<30}{'quiet':>8}{f'{args.busy} busy':>8}")
    for way in args.ways:
        print(f"{way:<30}{medians[way, 0] / unit:>8.2f}{medians[way, args.busy] / unit:>8.2f}")


if __name__ == "__main__":
    main()
