"""Text in and out of ``fairseq-interactive``, ``fairseq-generate`` and ``fairseq-eval-lm``: UTF-8 in every locale, and any bytes.

A byte that is not UTF-8 is a lone surrogate in a str (Python's ``surrogateescape``), which a byte model turns back into the byte.
"""

import io
import itertools
import sys
from collections.abc import Iterator
from contextlib import nullcontext, suppress


def use_utf8() -> None:
    """Makes standard input and output UTF-8 from here on, and lets ``fairseq-interactive`` read lines that are not."""
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            # An input that was read from before cannot be changed any more.
            with suppress(io.UnsupportedOperation):
                stream.reconfigure(encoding="utf-8", errors="surrogateescape")
    # Looked up, since importing the command sets up logging; it is the main module if it was started as a file.
    for name in ("fairseq_cli.interactive", "__main__"):
        if hasattr(sys.modules.get(name), "buffered_read"):
            sys.modules[name].buffered_read = read_lines


def read_lines(path: str, number: int) -> Iterator[list[str]]:
    """As fairseq's ``buffered_read``, which ends at the first byte that is not UTF-8: lines without white space at their ends.

    Args:
        path: of the file, "-" for standard input.
        number: how many lines are given at once.
    """
    source = nullcontext(sys.stdin) if path == "-" else open(path, encoding="utf-8", errors="surrogateescape")
    with source as file:
        # Line by line, so that a line that is typed is answered at once.
        lines = (line.strip() for line in iter(file.readline, ""))
        while batch := list(itertools.islice(lines, number)):
            yield batch
