"""What making data tells on the terminal: how far it is, and what there is at the end."""
import sys
import time
from typing import Mapping, Sequence, TextIO

from fairseq_expire.data.manifest import Manifest
from fairseq_expire.data.sources import Piece

# Seconds between two lines where the output is not a terminal, so that logs stay short.
QUIET_SECONDS = 5.0


class Progress:
    """How much of `total_bytes` is read: one line kept up to date on a terminal, elsewhere a line every few seconds."""

    def __init__(self, *, total_bytes: int, stream: TextIO = sys.stderr, quiet_seconds: float = QUIET_SECONDS):
        self.total_bytes = total_bytes
        self.stream = stream
        self.quiet_seconds = quiet_seconds
        self.done_bytes = 0
        self.is_terminal = stream.isatty()
        self.last_time = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        # What comes next, an error or the table, starts on a clean line.
        if self.is_terminal and self.done_bytes:
            print("\r\033[K", end="", file=self.stream, flush=True)

    def advance(self, doing: str, num_bytes: int) -> None:
        """Say that `num_bytes` more were read for what is being done."""
        self.done_bytes += num_bytes
        percent = 100 * self.done_bytes // self.total_bytes
        line = f"{doing}: {self.done_bytes / 1e6:.1f} of {self.total_bytes / 1e6:.1f} MB read ({percent}%)"
        if self.is_terminal:
            print(f"\r{line}\033[K", end="", file=self.stream, flush=True)
        elif time.monotonic() - self.last_time >= self.quiet_seconds:
            self.last_time = time.monotonic()
            print(line, file=self.stream, flush=True)


def table(manifest: Manifest, splits: Mapping[str, Sequence[Piece]]) -> str:
    """One row per split, then the size of the dictionary. A file that is divided between splits counts in each."""
    rows = [("split", "files", "bytes", "tokens", "unknown")]
    for name, counts in manifest.splits.items():
        rows.append((name, len(splits[name]), counts.source_bytes, counts.tokens, counts.unknown))
    lines = [f"{row[0]:<6}" + "".join(f"{column:>15}" for column in row[1:]) for row in rows]
    return "\n".join([*lines, f"{manifest.symbols} symbols in the dictionary"])
