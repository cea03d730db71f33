"""Draws the results of growth.py: cost against the longest span, the alive memories, the stream, and token by token."""

import argparse
import json
from pathlib import Path

try:
    import matplotlib
except ImportError:
    raise SystemExit("curves.py draws with matplotlib: pip install -c constraints.txt -e '.[plot]'") from None

matplotlib.use("svg")
# The same figures give the same file.
matplotlib.rcParams["svg.hashsalt"] = "fairseq-expire"

from matplotlib import pyplot as plt  # noqa: E402

MODES = {"train": "training step", "score": "scoring"}

Row = dict[str, object]


def read(path: str) -> list[Row]:
    """Reads the lines of ``growth.py --json``.

    Raises:
        ValueError: if a line is none of these.
    """
    rows = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            rows.append({**row, "part": row["part"]})
        except (ValueError, TypeError, KeyError):
            raise ValueError(f"{path}, line {number}: not a line of growth.py --json") from None
    return rows


def relative(rows: list[Row], name: str) -> list[float]:
    """Returns values divided by the first one."""
    return [row[name] / rows[0][name] for row in rows]


def draw(rows: list[Row]) -> plt.Figure:
    """Draws four panels; time and memory are relative to the first point of each line, since machines differ."""
    figure, ((span, alive), (stream, token)) = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    for panel, part, x, label in (
        (span, "max-span", "max_span", "longest span L (steps)"),
        (alive, "alive", "alive", "alive memories per row"),
    ):
        for mode, name in MODES.items():
            some = [row for row in rows if row["part"] == part and row["mode"] == mode]
            if some:
                [line] = panel.plot([row[x] for row in some], relative(some, "seconds"), "o-", label=f"{name}: time")
                memory = relative(some, "peak_bytes")
                panel.plot(
                    [row[x] for row in some], memory, "s--", color=line.get_color(), label=f"{name}: peak memory"
                )
        panel.set(xlabel=label, ylabel="a block, relative", ylim=(0, None))
        panel.legend()
    span.set(xscale="log", title="at the same number of alive memories")
    alive.set(xlim=(0, None), title="at L = 16,384")
    some = [row for row in rows if row["part"] == "stream"]
    stream.plot([row["bytes"] / 1e6 for row in some], [row["resident"] / 1e6 for row in some], "o-", label="process")
    stream.plot(
        [row["bytes"] / 1e6 for row in some], [row["memory"] / 1e6 for row in some], "s--", label="stored memory"
    )
    stream.set(xlabel="bytes scored (millions)", ylabel="MB", ylim=(0, None), title="one stream, L = 131,072")
    stream.legend()
    some = [row for row in rows if row["part"] == "tokens"]
    token.plot([row["alive"] for row in some], [row["block_seconds"] / row["token_seconds"] for row in some], "o-")
    token.set(
        xlabel="alive memories per row",
        ylabel="times as fast",
        ylim=(0, None),
        title="one token, against its block again",
    )
    return figure


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figures", help="what growth.py --json printed")
    parser.add_argument("--dest", default="growth.svg", help="the picture to write (default: growth.svg)")
    args = parser.parse_args(arguments)
    try:
        figure = draw(read(args.figures))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    figure.savefig(args.dest, metadata={"Date": None})


if __name__ == "__main__":
    main()
