"""The growth of the cost of Expire-Span, and the cost of a single token.

The cost does not depend on the longest span L or the length of the stream. It grows linearly with the alive memories.
"""

import argparse
import copy
import itertools
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace

from peak import peak_memory, resident
from subjects import Ours, Shape, blocks, expire_span, text

BASE = Shape(rows=2, span=512, spread=0.25)
SPAN_LIMITS = (1024, 4096, 16384, 65536, 131072)
SPANS = (256, 512, 1024, 2048, 4096)
STREAM = Shape(rows=1, span=512, max_span=131072, width=128, heads=4, ffn=512)

Row = dict[str, object]


def filled(shape: Shape, mode: str) -> Ours:
    """Returns a model whose memory is in its steady state."""
    model = expire_span(shape)
    for block in blocks(shape, shape.blocks_to_fill):
        getattr(model, mode)(block)
    return model


def in_turns(shapes: list[Shape], mode: str, rounds: int) -> Iterator[Row]:
    """Measures shapes: median seconds of a block, read in turns, and peak memory, the median of three processes."""
    models = [filled(shape, mode) for shape in shapes]
    times: list[list[float]] = [[] for _ in shapes]
    alive: list[list[float]] = [[] for _ in shapes]
    streams = [blocks(shape, rounds) for shape in shapes]
    for number in range(rounds):
        for model, stream, seconds, sizes in zip(models, streams, times, alive):
            start = time.perf_counter()
            getattr(model, mode)(stream[number])
            seconds.append(time.perf_counter() - start)
            sizes.append(statistics.mean(model.alive()))
    for shape, seconds, sizes in zip(shapes, times, alive):
        yield {
            "max_span": shape.max_span,
            "mode": mode,
            "alive": statistics.mean(sizes),
            "seconds": statistics.median(seconds),
            "peak_bytes": statistics.median(peak_memory("expire_span", shape, mode, None) for _ in range(3)),
        }


def with_max_span(mode: str, rounds: int) -> Iterator[Row]:
    """Measures longest spans from short to very long with the same alive memories."""
    yield from in_turns([replace(BASE, max_span=span) for span in SPAN_LIMITS], mode, rounds)


def with_alive(mode: str, rounds: int) -> Iterator[Row]:
    """Measures more and more alive memories at one longest span."""
    yield from in_turns([replace(BASE, span=span) for span in SPANS], mode, rounds)


def along_a_stream(num_bytes: int) -> Iterator[Row]:
    """Measures process and memory while a long stream is scored."""
    model, read = expire_span(STREAM), 0
    report = num_bytes // 16
    start = time.perf_counter()
    while read < num_bytes:
        for block in blocks(STREAM, 64, seed=read):
            model.score(block)
            read += STREAM.block
        if read // report > (read - 64 * STREAM.block) // report:
            seconds = time.perf_counter() - start
            yield {"bytes": read, "resident": resident(), "memory": model.memory.nbytes, "seconds": seconds}


def token_by_token(tokens: int, rounds: int) -> Iterator[Row]:
    """Measures reading one token of each row against reading the whole last block again for it.

    The two take turns. In each round ``tokens`` tokens of each row are read.
    """
    for span in SPANS:
        shape = replace(BASE, span=span)
        model = filled(shape, "score")
        before = copy.deepcopy(model.memory)
        single = iter(text(shape, 1 + rounds * tokens // shape.block).unfold(1, 2, 1).unbind(1))
        again: list[float] = []
        one: list[float] = []
        for block in blocks(shape, rounds):
            # A copy has the same room to grow.
            memory, model.memory = model.memory, copy.deepcopy(before)
            start = time.perf_counter()
            model.score(block)
            again.append(time.perf_counter() - start)
            model.restart()
            model.memory = memory
            start = time.perf_counter()
            for token in itertools.islice(single, tokens):
                model.score(token)
            one.append((time.perf_counter() - start) / tokens)
        yield {
            "alive": statistics.mean(model.alive()),
            "token_seconds": statistics.median(one),
            "block_seconds": statistics.median(again),
        }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("max-span", "alive", "stream", "tokens")
    parser.add_argument(
        "--parts", nargs="+", choices=parts, default=list(parts), help="which of the measurements (default: all)"
    )
    parser.add_argument("--rounds", type=int, default=11, help="blocks that each reads on the clock (default: 11)")
    parser.add_argument("--bytes", type=int, default=4_000_000, help="length of the stream (default: 4000000)")
    parser.add_argument("--json", action="store_true", help="print a JSON object for each line of a table")
    args = parser.parse_args(arguments)

    def show(part: str, row: Row) -> None:
        if args.json:
            print(json.dumps({"part": part, **row}), flush=True)
            return
        cells = (
            f"{name} {value:,.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()
        )
        print(f"{part}: {', '.join(cells)}", flush=True)

    for part, measure in (("max-span", with_max_span), ("alive", with_alive)):
        if part in args.parts:
            for mode in ("train", "score"):
                for row in measure(mode, args.rounds):
                    show(part, row)
    if "stream" in args.parts:
        for row in along_a_stream(args.bytes):
            show("stream", row)
    if "tokens" in args.parts:
        for row in token_by_token(29, args.rounds):
            show("tokens", row)


if __name__ == "__main__":
    main()
