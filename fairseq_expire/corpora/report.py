"""What making data tells on the terminal: how far it is, and what there is at the end."""

import sys
from collections.abc import Mapping, Sequence

from tqdm import tqdm

from fairseq_expire.corpora.sources import FileSlice
from fairseq_expire.tokenizers.manifest import Manifest

# Seconds between two lines where the output is not a terminal, so that logs stay short.
QUIET_SECONDS = 5.0


class ByteProgress(tqdm):
    """How many bytes of `total` are done, how fast, and how long it will take: one line on a terminal, elsewhere a line
    every few seconds, and nothing at all if it takes no longer than that."""

    # tqdm would start a thread to look after slow bars, and processes are forked while bars are shown.
    monitor_interval = 0

    def __init__(self, total: int | None):
        quiet = not sys.stderr.isatty()
        wait = QUIET_SECONDS if quiet else 0.1
        super().__init__(
            total=total, unit="B", unit_scale=True, file=sys.stderr, leave=False, mininterval=wait, delay=wait,
            ascii=quiet, dynamic_ncols=not quiet,
        )  # fmt: skip

    def advance(self, doing: str, num_bytes: int) -> None:
        """Say that `num_bytes` more are done of what is being done."""
        if doing != self.desc:
            self.set_description_str(doing, refresh=False)
        self.update(num_bytes)


def table(manifest: Manifest, splits: Mapping[str, Sequence[FileSlice]]) -> str:
    """One row per split, then what the data is. A file that is divided between splits counts in each."""
    rows = [("split", "files", "bytes", "characters", "tokens", "unknown")]
    for name, counts in manifest.splits.items():
        rows.append((name, len(splits[name]), counts.source_bytes, counts.text_chars, counts.tokens, counts.unknown))
    lines = [f"{row[0]:<6}" + "".join(f"{column:>15}" for column in row[1:]) for row in rows]
    lines.append(f"{manifest.symbols} symbols in the dictionary")
    if "corpus" in manifest.source:
        checked = {True: "checked by hash", False: "not verified (--no-verify)"}.get(manifest.source["verified"])
        lines.append(f"{manifest.source['corpus']}, {checked or manifest.source['verified']}")
    return "\n".join(lines)
