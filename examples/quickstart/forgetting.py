"""A task that needs a long memory of little: what forgetting is good for, in about three minutes on two cores.

    python examples/quickstart/forgetting.py

A stream of symbols, most of which mean nothing. Here and there one gives a key a new value, or asks for the value of one of the keys
that were set last. The answer may lie more than a hundred steps back, so a model must look far; but only one step in twenty is worth
keeping. Three models learn the task side by side, with one thread each: Expire-Span, which may remember 256 steps and pays for
each; a fixed span of 256; and a fixed span with as many memories as Expire-Span has in the mean.
"""

import argparse
import json
import multiprocessing
import signal
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fairseq_expire.modules import ExpireSpan, FixedSpan, MemoryTransformer

# What a symbol does: nothing, set a key, ask for one.
FILLER, PAIR, QUESTION = range(3)
KINDS = ("fillers", "pairs", "questions")

FILLERS, KEYS, VALUES = 16, 12, 4
PAIR_SHARE, QUESTION_SHARE = 0.05, 0.1
# Questions are about one of the last so many pairs. Keys come in turn, so each of these has another key.
RECENT = 8

LONGEST = 256
ROWS, BLOCK = 16, 64
UPDATES = 1400
SEED = 1


class Block(NamedTuple):
    """A block of the stream: symbols, the answers to questions (-1 elsewhere), and what each symbol does; all [B, T] int64."""

    symbols: Tensor
    answers: Tensor
    kinds: Tensor


class PairStream:
    """Endless rows of fillers, pairs and questions.

    Args:
        rows: B.
        seed: of the random numbers.
    """

    def __init__(self, rows: int, seed: int):
        self.random = np.random.default_rng(seed)
        self.pairs = np.zeros(rows, dtype=np.int64)  # how many there have been
        self.values = np.zeros((rows, KEYS), dtype=np.int64)

    def read(self, length: int) -> Block:
        """The next ``length`` symbols of each row."""
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
    """Reads a stream and says at each step what the value asked for is.

    Args:
        span: how many steps the memory reaches; with ``expire`` the longest span, otherwise that of all states.
        expire: whether states learn how long they stay.
    """

    def __init__(self, *, span: int, expire: bool, width: int = 64):
        super().__init__()
        self.embed = nn.Embedding(FILLERS + KEYS * VALUES + KEYS, width)
        self.stack = MemoryTransformer(
            embed_dim=width, num_heads=2, ffn_dim=4 * width, num_layers=2, position_range=1, pre_norm=True,
            policy=lambda: (
                ExpireSpan(embed_dim=width, max_span=span, ramp=32, span_init=span / 2) if expire else FixedSpan(max_span=span)
            ),
        )  # fmt: skip
        self.answer = nn.Linear(width, VALUES)

    def forward(self, symbols, memory=None):
        """[B, T] -> scores [B, T, VALUES], the memory to read on from, and the layers' reports."""
        out = self.stack(self.embed(symbols), memory)
        return self.answer(out.hidden), out.memory, out.reports


@dataclass
class Result:
    """Answers of a model on a stream that it was not trained on.

    Args:
        right: share of the questions that it answers rightly.
        memory_size: how many states a query sees, in the mean over layers.
        spans: [layers][KINDS] steps that a state stays, in the mean; those of a fixed span are all equal.
    """

    right: float
    memory_size: float
    spans: list[list[float]]


def memory_size(reports) -> float:
    return float(np.mean([report.memory_size.double().mean().item() for report in reports]))


def train(name: str, model: Answerer, *, updates: int, price: float = 1e-4, lr: float = 3e-3) -> None:
    """Trains on a stream, remembering from block to block; the learning rate falls to zero."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min(1.0, (n + 1) / 50) * (1 - n / updates))
    stream, memory = PairStream(ROWS, SEED), None
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
def test(model: Answerer, *, blocks: int = 60) -> Result:
    """Reads a new stream; what comes before memories are full does not count."""
    model.eval()
    stream, memory = PairStream(ROWS, SEED + 1), None
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


def experiment(name: str, *, span: int, expire: bool, updates: int) -> Result:
    """Trains and tests one model, with one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    model = Answerer(span=span, expire=expire)
    train(name, model, updates=updates)
    return test(model)


def compare(updates: int = UPDATES) -> dict[str, Result]:
    """All three: "expire", "far" (a fixed span of the full reach) and "near" (one of Expire-Span's memory size)."""
    # Started anew: a fork would inherit threads that do not run there.
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            far = pool.submit(experiment, f"fixed span of {LONGEST}", span=LONGEST, expire=False, updates=updates)
            expire = pool.submit(experiment, "Expire-Span", span=LONGEST, expire=True, updates=updates).result()
            span = max(1, round(expire.memory_size))
            near = pool.submit(experiment, f"fixed span of {span}", span=span, expire=False, updates=updates)
            return {"near": near.result(), "far": far.result(), "expire": expire}
        except BaseException:
            # The pool would wait for what is running.
            for process in multiprocessing.active_children():
                process.kill()
            raise


def report(results: dict[str, Result]) -> str:
    """The tables: right answers and memories of each, and how long Expire-Span keeps what."""
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
    parser.add_argument("--json", metavar="FILE", help="write the results here, too")
    args = parser.parse_args(arguments)
    results = compare(args.updates)
    print(report(results))
    if args.json:
        with open(args.json, "w") as file:
            json.dump({key: vars(result) for key, result in results.items()}, file)


if __name__ == "__main__":
    # Whoever ends this program otherwise than with Ctrl-C must not leave a training behind either.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
