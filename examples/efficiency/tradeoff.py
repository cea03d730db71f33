"""Draws the results of compare.py: bits per token against visible memories (the paper's figures 7 and 11)."""

import argparse
import json
from pathlib import Path

try:
    import matplotlib
except ImportError:
    raise SystemExit("tradeoff.py draws with matplotlib: pip install -c constraints.txt -e '.[plot]'") from None

matplotlib.use("svg")
# The same figures give the same file.
matplotlib.rcParams["svg.hashsalt"] = "fairseq-expire"

from matplotlib import pyplot as plt  # noqa: E402

FIELDS = {"arch": str, "size": int, "seed": int, "bits": float, "memory_size": float}

Row = dict[str, object]


def read(path: str) -> list[Row]:
    """Reads the lines of ``compare.py --json``.

    Raises:
        ValueError: if a line is none of these.
    """
    rows = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            rows.append({name: kind(row[name]) for name, kind in FIELDS.items()})
        except (ValueError, TypeError, KeyError):
            raise ValueError(f"{path}, line {number}: not a line of compare.py --json") from None
    return rows


def draw(texts: dict[str, list[Row]]) -> plt.Figure:
    """Draws a panel for each text: a line for each architecture through the means of its sizes, a dot for each seed."""
    figure, panels = plt.subplots(1, len(texts), figsize=(5.5 * len(texts), 4.2), layout="constrained", squeeze=False)
    for panel, (title, rows) in zip(panels[0], texts.items()):
        for arch in dict.fromkeys(row["arch"] for row in rows):
            sizes: dict[int, list[Row]] = {}
            for row in rows:
                if row["arch"] == arch:
                    sizes.setdefault(row["size"], []).append(row)
            means = sorted(
                tuple(sum(row[name] for row in some) / len(some) for name in ("memory_size", "bits"))
                for some in sizes.values()
            )
            name = f"{arch} (fairseq's)" if arch == "adaptive_span" else arch
            [line] = panel.plot(*zip(*means), "-", label=name)
            for some in sizes.values():
                panel.plot(
                    [row["memory_size"] for row in some], [row["bits"] for row in some], "o", color=line.get_color()
                )
        panel.set(xscale="log", xlabel="memories seen by a query", ylabel="test bits per token", title=title)
        panel.legend(fontsize="small")
    return figure


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", nargs="+", metavar="TITLE=FILE", help="what compare.py --json printed for a text")
    parser.add_argument("--dest", default="tradeoff.svg", help="the picture to write (default: tradeoff.svg)")
    args = parser.parse_args(arguments)
    texts = {}
    for given in args.figures:
        title, found, path = given.partition("=")
        if not found:
            parser.error(f"expected TITLE=FILE, got {given}")
        try:
            texts[title] = read(path)
        except (OSError, ValueError) as error:
            parser.error(str(error))
    draw(texts).savefig(args.dest, metadata={"Date": None})


if __name__ == "__main__":
    main()
