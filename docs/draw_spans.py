"""Draws ``docs/images/spans.svg``: what a trained Expire-Span model keeps of a stream, beside a fixed span.

    python docs/draw_spans.py --measure   # trains both models of examples/quickstart/forgetting.py, some minutes
    python docs/draw_spans.py             # draws the stored measurement again

The measurement is stored in ``docs/images/spans.json``.
"""

import argparse
import json
import sys
from pathlib import Path

DOCS = Path(__file__).parent
MEASUREMENT = DOCS / "images/spans.json"
PICTURE = DOCS / "images/spans.svg"

# Steps of the stream that the picture shows.
STEPS = 192
# Steps over which a memory of the Expire-Span model fades out, as forgetting.py sets them.
RAMP = 32

COLOURS = {"fillers": "#b5b5b5", "pairs": "#1f6fb4", "questions": "#e08214"}
BOLD, END = ' font-weight="bold"', ' text-anchor="end"'
PANEL, ROW, LEFT, TOP, GAP = 384, 1.6, 16, 64, 48


def measure() -> dict:
    """Trains a model with Expire-Span and one with a fixed span of as many memories.

    Returns:
        for each the share of right answers and the mean number of memories; and of the last steps of a new stream what
        each symbol is and how many steps the first layer of the Expire-Span model keeps it.
    """
    sys.path.insert(0, str(DOCS.parent / "examples/quickstart"))
    import forgetting
    import torch

    def trained(span: int, *, expire: bool) -> tuple:
        torch.manual_seed(forgetting.SEED)
        model = forgetting.Answerer(span=span, expire=expire)
        forgetting.train(
            f"{'Expire-Span, up to' if expire else 'fixed span of'} {span}", model, updates=forgetting.UPDATES
        )
        return model, forgetting.test(model)

    torch.set_num_threads(1)
    model, expire = trained(forgetting.LONGEST, expire=True)
    _, fixed = trained(round(expire.memory_size), expire=False)

    stream, memory, kinds, spans = forgetting.PairStream(1, seed=forgetting.SEED + 2), None, [], []
    with torch.no_grad():
        for _ in range(STEPS // forgetting.BLOCK):
            block = stream.read(forgetting.BLOCK)
            _, memory, reports = model(block.symbols, memory)
            kinds += [forgetting.KINDS[kind] for kind in block.kinds[0].tolist()]
            spans += [round(span, 1) for span in reports[0].span[0, :, 0].tolist()]
    return {
        "expire": {"right": expire.right, "memories": expire.memory_size},
        "fixed": {"right": fixed.right, "memories": fixed.memory_size},
        "kinds": kinds,
        "spans": spans,
    }


def bar(x: float, y: float, width: float, colour: str, opacity: float = 1) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{ROW * 0.75:.2f}" fill="{colour}"'
        f"{f' opacity={chr(34)}{opacity}{chr(34)}' if opacity < 1 else ''}/>"
    )


def bars(x: float, kinds: list[str], spans: list[float], ramp: float) -> list[str]:
    """One bar for each symbol: solid while it is remembered, fading out on the ramp, cut off at the last step."""
    scale, now, lines = PANEL / len(kinds), len(kinds), []
    for step, (kind, span) in enumerate(zip(kinds, spans)):
        y, start, end = TOP + step * ROW, step, min(step + span, now)
        lines.append(bar(x + start * scale, y, (end - start) * scale, COLOURS[kind]))
        # The ramp in three pieces of falling opacity.
        for piece in range(3 if ramp > 1 else 0):
            left = step + span + piece * ramp / 3
            right = min(left + ramp / 3, now)
            if left < right:
                lines.append(bar(x + left * scale, y, (right - left) * scale, COLOURS[kind], (0.6, 0.35, 0.12)[piece]))
    return lines


def text(x: float, y: float, words: str, *, size: int = 13, bold: bool = False, end: bool = False) -> str:
    style = f'font-size="{size}"{BOLD if bold else ""}{END if end else ""}'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{words}</text>'


def draw(found: dict) -> str:
    """The picture as SVG."""
    kinds, steps = found["kinds"], len(found["kinds"])
    width, bottom = LEFT * 2 + PANEL * 2 + GAP, TOP + steps * ROW
    height, fixed = round(bottom + 62), round(found["fixed"]["memories"])
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" fill="#222">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    panels = (
        ("fixed", "A fixed span keeps everything for equally long", [fixed] * steps, 1),
        ("expire", "Expire-Span keeps what will be asked for", found["spans"], RAMP),
    )
    for number, (name, title, spans, ramp) in enumerate(panels):
        x = LEFT + number * (PANEL + GAP)
        result = found[name]
        lines += [
            text(x, 22, title, size=15, bold=True),
            text(x, 42, f"{result['memories']:.0f} memories a query, {result['right']:.1%} of the answers right"),
            *bars(x, kinds, spans, ramp),
            f'<path d="M{x + PANEL} {TOP - 6} V{bottom:.1f}" stroke="#222" stroke-width="1.5"/>',
            text(x + PANEL, bottom + 16, "now", end=True),
            text(x, bottom + 16, "steps of the stream →"),
        ]
    x = LEFT
    for kind, words in (("fillers", "means nothing"), ("pairs", "sets a key"), ("questions", "asks for a key")):
        lines.append(f'<rect x="{x}" y="{bottom + 36:.1f}" width="14" height="10" fill="{COLOURS[kind]}"/>')
        lines.append(text(x + 20, bottom + 46, words))
        x += 150
    lines.append(text(width - LEFT, bottom + 46, "one line a symbol; a bar ends where it is forgotten", end=True))
    return "\n".join([*lines, "</svg>"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="train the two models and store what they keep")
    if parser.parse_args().measure:
        MEASUREMENT.write_text(json.dumps(measure()) + "\n", encoding="utf-8")
    PICTURE.write_text(draw(json.loads(MEASUREMENT.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main()
