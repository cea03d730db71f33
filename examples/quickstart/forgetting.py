"""The use of forgetting: a task that needs a long memory of few states, in about three minutes on two cores.

    python examples/quickstart/forgetting.py

Most symbols of the stream are fillers without meaning. Some give a key a new value, and some ask for the value of a key
that was set recently. The answer can lie more than a hundred steps back, but only one step in twenty is worth keeping.
Three models learn the task side by side, with one thread each: Expire-Span, which may remember 256 steps and pays for
each; a fixed span of 256; and a fixed span with as many memories as Expire-Span has on average.
"""

import argparse
import json
import multiprocessing
import signal
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fairseq_expire.modules import ExpireSpan, FixedSpan, MemoryTransformer

# Kinds of symbols: one has no meaning, one sets a key, one asks for a key.
FILLER, PAIR, QUESTION = range(3)
KINDS = ("fillers", "pairs", "questions")

FILLERS, KEYS, VALUES = 16, 12, 4
PAIR_SHARE, QUESTION_SHARE = 0.05, 0.1
# Questions are about one of this many last pairs. Keys are set in turn, so that these pairs have different keys.
RECENT = 8

LONGEST = 256
ROWS, BLOCK = 16, 64
UPDATES = 1400
SEED = 1


class Block(NamedTuple):
    """A block of the stream: symbols, answers to questions (-1 elsewhere), and kinds of symbols; all [B, T] int64."""

    symbols: Tensor
    answers: Tensor
    kinds: Tensor


class PairStream:
    """Endless rows of fillers, pairs and questions.

    Args:
        rows: B.
        seed: seed of the random numbers.
    """

    def __init__(self, rows: int, seed: int):
        self.random = np.random.default_rng(seed)
        # [B], number of pairs so far.
        self.pairs = np.zeros(rows, dtype=np.int64)
        self.values = np.zeros((rows, KEYS), dtype=np.int64)

    def read(self, length: int) -> Block:
        """Returns the next ``length`` symbols of each row."""
        rows = len(self.pairs)
        symbols = self.random.integers(FILLERS, size=(rows, length))
        values = self.random.integers(VALUES, size=(rows, length))
        chance, recency = self.random.random((2, rows, length))
        answers = np.full((rows, length), -1)
        kinds = np.full((rows, length), FILLER)
        for step in range(length):
            [row] = np.nonzero(chance[:, step] < PAIR_SHARE)
            key = self.pairs[row] % KEYS
            self.values[row, key] = values[row, step]
            self.pairs[row] += 1
            symbols[row, step] = FILLERS + key * VALUES + values[row, step]
            kinds[row, step] = PAIR

            asked = (chance[:, step] >= PAIR_SHARE) & (chance[:, step] < PAIR_SHARE + QUESTION_SHARE)
            [row] = np.nonzero(asked & (self.pairs > 0))
            back = (recency[row, step] * np.minimum(self.pairs[row], RECENT)).astype(np.int64)
            key = (self.pairs[row] - 1 - back) % KEYS
            symbols[row, step] = FILLERS + KEYS * VALUES + key
            answers[row, step] = self.values[row, key]
            kinds[row, step] = QUESTION
        return Block(*map(torch.from_numpy, (symbols, answers, kinds)))


class Answerer(nn.Module):
    """A model that reads a stream and predicts at each step the value that is asked for.

    Args:
        span: the longest span with ``expire``, otherwise the span of all states.
        expire: learn a span for each state (Expire-Span).
    """

    def __init__(self, *, span: int, expire: bool, width: int = 64):
        super().__init__()
        self.embed = nn.Embedding(FILLERS + KEYS * VALUES + KEYS, width)
        if expire:
            policy = partial(ExpireSpan, embed_dim=width, max_span=span, ramp=32, span_init=span / 2)
        else:
            policy = partial(FixedSpan, max_span=span)
        self.stack = MemoryTransformer(
            embed_dim=width, num_heads=2, ffn_dim=4 * width, num_layers=2, position_range=1, policy=policy,
            pre_norm=True,
        )  # fmt: skip
        self.answer = nn.Linear(width, VALUES)

    def forward(self, symbols, memory=None):
        """[B, T] -> scores [B, T, VALUES], the new memory, and the layers' reports."""
        out = self.stack(self.embed(symbols), memory)
        return self.answer(out.hidden), out.memory, out.reports


@dataclass
class Result:
    """Performance of a model on a stream that it was not trained on.

    Args:
        right: share of the questions with a correct answer.
        memory_size: mean number of states that a query sees in a layer.
        spans: [layers][KINDS], mean span of the states of each kind; all are equal with a fixed span.
    """

    right: float
    memory_size: float
    spans: list[list[float]]


def memory_size(reports) -> float:
    """Returns the mean number of states that a query sees in a layer."""
    return float(np.mean([report.memory_size.double().mean().item() for report in reports]))


def train(name: str, model: Answerer, *, updates: int, price: float = 1e-4, lr: float = 3e-3, seed: int = SEED) -> None:
    """Trains on a stream with a memory from block to block; the learning rate falls to zero."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min(1.0, (n + 1) / 50) * (1 - n / updates))
    stream, memory = PairStream(ROWS, seed), None
    right = asked = 0
    for update in range(1, updates + 1):
        block = stream.read(BLOCK)
        scores, memory, reports = model(block.symbols, memory)
        questions = block.answers >= 0
        scores, answers = scores[questions], block.answers[questions]
        loss = nn.functional.cross_entropy(scores, answers)
        penalties = [report.penalty.sum() for report in reports if report.penalty is not None]
        loss = loss + price * sum(penalties) / block.symbols.numel()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        right += (scores.argmax(dim=-1) == answers).sum().item()
        asked += len(answers)
        if update % 50 == 0:
            print(
                f"{name}: update {update} of {updates}, {right / asked:.0%} right, {memory_size(reports):.0f} memories",
                flush=True,
            )
            right = asked = 0


@torch.no_grad()
def test(model: Answerer, *, blocks: int = 60, seed: int = SEED) -> Result:
    """Tests on a new stream; the blocks before memories are full do not count."""
    model.eval()
    stream, memory = PairStream(ROWS, seed + 1), None
    skipped = LONGEST // BLOCK + 1
    right = asked = 0
    sizes, spans, count = [], 0.0, torch.zeros(len(KINDS))
    for number in range(skipped + blocks):
        block = stream.read(BLOCK)
        scores, memory, reports = model(block.symbols, memory)
        if number < skipped:
            continue
        questions = block.answers >= 0
        right += (scores.argmax(dim=-1) == block.answers)[questions].sum().item()
        asked += questions.sum().item()
        sizes.append(memory_size(reports))
        of_kind = nn.functional.one_hot(block.kinds, len(KINDS)).float()  # [B, T, kinds]
        count += of_kind.sum(dim=(0, 1))
        spans = spans + torch.stack(
            [(report.span.mean(dim=-1, keepdim=True) * of_kind).sum(dim=(0, 1)) for report in reports]
        )
    return Result(right / asked, float(np.mean(sizes)), (spans / count).tolist())


def experiment(name: str, *, span: int, expire: bool, updates: int, seed: int = SEED) -> Result:
    """Trains and tests one model, with one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = Answerer(span=span, expire=expire)
    train(name, model, updates=updates, seed=seed)
    return test(model, seed=seed)


def compare(updates: int = UPDATES, seed: int = SEED) -> dict[str, Result]:
    """Returns the results of "expire", "far" (the longest fixed span) and "near" (one of Expire-Span's memory size)."""
    # Spawned, since threads of the parent do not run in a fork.
    options = {"updates": updates, "seed": seed}
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            far = pool.submit(experiment, f"fixed span of {LONGEST}", span=LONGEST, expire=False, **options)
            expire = pool.submit(experiment, "Expire-Span", span=LONGEST, expire=True, **options).result()
            span = max(1, round(expire.memory_size))
            near = pool.submit(experiment, f"fixed span of {span}", span=span, expire=False, **options)
            return {"near": near.result(), "far": far.result(), "expire": expire}
        except BaseException:
            # Otherwise the pool would wait for its processes.
            for process in multiprocessing.active_children():
                process.kill()
            raise


def report(results: dict[str, Result]) -> str:
    """Returns the tables: right answers and memories of each model, and the spans of Expire-Span by kind of symbol."""
    names = {
        "near": f"fixed span, {results['near'].memory_size:.0f} steps",
        "far": f"fixed span, {LONGEST} steps",
        "expire": f"Expire-Span, up to {LONGEST} steps",
    }
    width = max(map(len, names.values()))
    lines = [
        f"{'what was this key set to?':{width}} | right answers | memories",
        f"{'-' * width}-|---------------|---------",
    ]
    for key, name in names.items():
        lines.append(f"{name:{width}} | {results[key].right:13.1%} | {results[key].memory_size:8.0f}")
    lines += ["", f"{'Expire-Span keeps, in steps':{width}}" + "".join(f" | {kind:>9}" for kind in KINDS)]
    lines.append("-" * width + "-|----------" * len(KINDS))
    for number, spans in enumerate(results["expire"].spans, start=1):
        lines.append(f"{f'layer {number}':{width}}" + "".join(f" | {span:9.0f}" for span in spans))
    lines += ["", f"Answers lie up to some {RECENT / PAIR_SHARE:.0f} steps back; guessing gets {1 / VALUES:.0%} right."]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=UPDATES, help=f"updates of each model (default: {UPDATES})")
    parser.add_argument("--seed", type=int, default=SEED, help=f"seed of weights and streams (default: {SEED})")
    parser.add_argument("--json", metavar="FILE", help="write the results here, too")
    args = parser.parse_args(arguments)
    results = compare(args.updates, args.seed)
    print(report(results))
    if args.json:
        with open(args.json, "w") as file:
            json.dump({key: vars(result) for key, result in results.items()}, file)


if __name__ == "__main__":
    # A SIGTERM ends the training, too, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
