"""Input and output of ``fairseq-interactive``, ``-generate`` and ``-eval-lm``: UTF-8 in every locale, and any bytes.

A byte that is not UTF-8 becomes a lone surrogate in a str (Python's ``surrogateescape``). A byte model turns it back
into the byte.
"""

import io
import itertools
import sys
from collections.abc import Iterator
from contextlib import nullcontext, suppress


def use_utf8() -> None:
    """Makes standard input and output UTF-8, and lets ``fairseq-interactive`` read lines that are not."""
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            # An input that has been read from cannot be changed.
            with suppress(io.UnsupportedOperation):
                stream.reconfigure(encoding="utf-8", errors="surrogateescape")
    # Looked up, because importing the command sets up logging. It is the main module if it was started as a file.
    for name in ("fairseq_cli.interactive", "__main__"):
        if hasattr(sys.modules.get(name), "buffered_read"):
            sys.modules[name].buffered_read = read_lines


def read_lines(path: str, number: int) -> Iterator[list[str]]:
    """Yields lines without white space at their ends.

    It replaces fairseq's ``buffered_read``, which ends at the first byte that is not UTF-8.

    Args:
        path: of the file; "-" for standard input.
        number: lines in each list.
    """
    source = (
        nullcontext(sys.stdin) if path == "-" else open(path, encoding="utf-8", errors="surrogateescape")  # noqa: SIM115
    )
    with source as file:
        # Line by line, so that a typed line is answered at once.
        lines = (line.strip() for line in iter(file.readline, ""))
        while batch := list(itertools.islice(lines, number)):
            yield batch
