"""Moves of the spans in one update, and what they do to learning: the study behind ``--span-input-scale``.

    python examples/quickstart/wandering.py --out examples/quickstart/wandering.jsonl

Adam moves every weight by about the learning rate, whatever the gradient. So an update moves the span e = L sigmoid(x)
of a state h by about e (1 - e / L) lr (|h|_1 / scale + 1) steps. A state gets a gradient only on its ramp, R steps
long: where an update moves spans by more than that, it moves them past what the gradient has seen, and they wander.

The task is that of ``forgetting.py``. Each run is a line of JSON; runs that are there already are not made again.
"""

import argparse
import itertools
import json
import multiprocessing
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import forgetting
import torch
from torch import Tensor, nn

from fairseq_expire.modules import ExpireSpan, MemoryTransformer

WIDTH, RAMP = 64, 32
PRICE, LR = 1e-4, 3e-3
MAX_SPANS, SCALES, SEEDS = (256, 1024, 4096), (1, 16), (1, 2, 3)
# Spans before training: short ones, and half of L, where the sigmoid is steepest.
SPAN_INITS = ("128", "half")
# The moves of every tenth update after the warm-up are measured.
WARM_UP, MEASURED = 50, 10


class Run(NamedTuple):
    """Settings of a run: L, the spans before training, the scale of the predictor's input, and the seed."""

    max_span: int
    init: str
    scale: float
    seed: int


def make_model(run: Run) -> forgetting.Answerer:
    """Returns the model of ``forgetting.py`` with another span predictor."""
    init = run.max_span / 2 if run.init == "half" else float(run.init)
    model = forgetting.Answerer(span=run.max_span, expire=True, width=WIDTH)
    policy = partial(
        ExpireSpan, embed_dim=WIDTH, max_span=run.max_span, ramp=RAMP, span_init=init, input_scale=run.scale
    )
    model.stack = MemoryTransformer(
        embed_dim=WIDTH, num_heads=2, ffn_dim=4 * WIDTH, num_layers=2, position_range=1, policy=policy, pre_norm=True
    )
    return model


def record_states(model: forgetting.Answerer) -> list[Tensor]:
    """Returns a list that always has the input of each layer's span predictor in the last block, [N, D] each."""
    states: list[Tensor] = [torch.empty(0)] * len(model.stack.layers)

    def record(number: int, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # A block's own states come after those of the memory.
        states[number] = inputs[0].detach().flatten(0, -2)

    for number, layer in enumerate(model.stack.layers):
        layer.policy.register_forward_pre_hook(partial(record, number))
    return states


def train(run: Run, updates: int) -> dict[str, Any]:
    """Trains and tests a model.

    Returns:
        ``right``: share of right answers on a stream of its own. ``memory``: mean number of memories a query sees.
        ``step``: by how many steps an update moves the span of a state, on average. ``expected``: the same by the
        estimate above. ``largest``: the largest move of a span in an update.
    """
    torch.set_num_threads(1)
    torch.manual_seed(run.seed)
    model = make_model(run)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min(1.0, (n + 1) / WARM_UP) * (1 - n / updates))
    stream, memory = forgetting.PairStream(forgetting.ROWS, run.seed), None
    states = record_states(model)
    moves, largest, expected = [], [], []
    for update in range(updates):
        block = stream.read(forgetting.BLOCK)
        scores, memory, reports = model(block.symbols, memory)
        questions = block.answers >= 0
        loss = nn.functional.cross_entropy(scores[questions], block.answers[questions])
        penalties = sum(report.penalty.sum() for report in reports)
        (loss + PRICE * penalties / block.symbols.numel()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if update < WARM_UP or update % MEASURED:
            optimizer.step()
        else:
            seen = [state.clone() for state in states]
            policies = [layer.policy for layer in model.stack.layers]
            with torch.no_grad():
                before = [policy.spans(state) for policy, state in zip(policies, seen)]
                optimizer.step()
                moved = [(p.spans(state) - span).abs() for p, state, span in zip(policies, seen, before)]
                rate = schedule.get_last_lr()[0]
                slope = [span * (1 - span / run.max_span) for span in before]
                each = [s * rate * (h.abs().sum(-1, keepdim=True) / run.scale + 1) for s, h in zip(slope, seen)]
            moves.append(mean(move.mean().item() for move in moved))
            largest.append(max(move.max().item() for move in moved))
            expected.append(mean(move.mean().item() for move in each))
        optimizer.zero_grad()
        schedule.step()
    result = test(model, run.seed)
    return {
        **run._asdict(),
        "updates": updates,
        "right": result.right,
        "memory": result.memory_size,
        "step": mean(moves),
        "expected": mean(expected),
        "largest": max(largest),
    }


@torch.no_grad()
def test(model: forgetting.Answerer, seed: int, *, blocks: int = 60, skipped: int = 8) -> forgetting.Result:
    """Tests on a stream that training never saw; the first blocks do not count."""
    model.eval()
    stream, memory = forgetting.PairStream(forgetting.ROWS, seed + 1000), None
    right = asked = 0
    sizes = []
    for number in range(skipped + blocks):
        block = stream.read(forgetting.BLOCK)
        scores, memory, reports = model(block.symbols, memory)
        if number >= skipped:
            questions = block.answers >= 0
            right += (scores.argmax(dim=-1) == block.answers)[questions].sum().item()
            asked += questions.sum().item()
            sizes.append(forgetting.memory_size(reports))
    return forgetting.Result(right / asked, mean(sizes), [])


def table(results: list[dict[str, Any]]) -> str:
    """Returns a table in Markdown: a row for each L and scale, mean and standard deviation over seeds."""
    groups = defaultdict(list)
    for result in results:
        groups[result["max_span"], result["init"], result["scale"]].append(result)
    lines = [
        "| L | first spans | scale | an update moves spans by | estimate | largest move | right answers | memories |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (max_span, init, scale), group in sorted(groups.items()):
        values = {name: [result[name] for result in group] for name in ("step", "expected", "largest")}
        right, memory = [100 * result["right"] for result in group], [result["memory"] for result in group]
        spread = f" ± {stdev(right):.1f}" if len(group) > 1 else ""
        steps = " | ".join(f"{mean(values[name]) / RAMP:.3f} R" for name in values)
        first = "L / 2" if init == "half" else init
        lines.append(
            f"| {max_span:,} | {first} | {scale:g} | {steps} | {mean(right):.1f} %{spread} | {mean(memory):.0f} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, metavar="FILE", help="a line of JSON for each run; made runs are kept")
    parser.add_argument("--updates", type=int, default=700, help="updates of each run (default: 700)")
    parser.add_argument("--max-spans", type=int, nargs="+", default=MAX_SPANS, metavar="L", help="the longest spans")
    parser.add_argument("--inits", nargs="+", default=SPAN_INITS, metavar="E", help="spans before training, or 'half'")
    parser.add_argument("--scales", type=float, nargs="+", default=SCALES, metavar="S", help="the predictor's scales")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="seeds (default: 1 2 3)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each (default: 1)")
    args = parser.parse_args(arguments)
    out = Path(args.out)
    results = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    done = {(*(result[name] for name in Run._fields), result["updates"]) for result in results}
    runs = [Run(*values) for values in itertools.product(args.max_spans, args.inits, args.scales, args.seeds)]
    # 128 is half of the shortest L.
    runs = [run for run in runs if not (run.init == "half" and run.max_span == 256)]
    with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        missing = [run for run in runs if (*run, args.updates) not in done]
        for result in pool.map(partial(train, updates=args.updates), missing):
            results.append(result)
            with out.open("a") as file:
                print(json.dumps(result), file=file)
            print(json.dumps(result), flush=True)
    print(table([result for result in results if result["updates"] == args.updates]))


if __name__ == "__main__":
    main()
