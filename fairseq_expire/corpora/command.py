"""The command line that the scripts of data_prep share: options, progress, the final report, and errors in one line."""

import argparse
import errno
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from fairseq_expire.command_line import OneLineParser, system_error_message
from fairseq_expire.corpora.binarize import Job, binarize
from fairseq_expire.corpora.compressed import find_named, remove_unpacked
from fairseq_expire.corpora.download import RemoteFile, fetch
from fairseq_expire.corpora.verify import verify
from fairseq_expire.files import check_replaceable, new_folder
from fairseq_expire.tokenizers.chunks import FileSlice
from fairseq_expire.tokenizers.manifest import FILE_NAME, Manifest, read_manifest

# Seconds between two lines of progress where the output is not a terminal, so that logs stay short.
QUIET_SECONDS = 5.0
# Errors of the system if a disk, a quota or a file is full.
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Parser(OneLineParser):
    """A parser with the options that all scripts have."""

    def __init__(self, **kwargs: str):
        super().__init__(**kwargs)
        self.add_argument("--dest", metavar="DIR", help="folder to make")
        self.add_argument("--force", action="store_true", help="replace the data in DIR")
        self.add_argument(
            "--workers",
            type=positive,
            metavar="N",
            help="threads, or processes for words and generated data (default: one a core; 8 processes at most)",
        )
        self.add_argument(
            "--verify",
            metavar="DIR",
            help="instead of making data: read DIR's back and compare it with what it was made of",
        )

    def run(self, make: Callable[[argparse.Namespace], None], arguments: list[str] | None) -> None:
        """Calls ``make`` with the options, or verifies data. Ends the script with one line if something is wrong."""
        args = self.parse_args(arguments)
        # Some of what fairseq imports sets the log level of all libraries to DEBUG.
        logging.getLogger("urllib3").setLevel(logging.WARNING)
        try:
            if args.verify:
                self.verify(args)
            else:
                make(args)
        except BrokenPipeError:
            # The reader of what --restore writes has seen enough. Python would write the rest at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self.exit(1)
        except OSError as error:
            advice = "; make room, and run the same command again" if error.errno in NO_ROOM else ""
            if isinstance(error, PermissionError):
                advice = "; change its permissions, or leave it out"
            self.error(system_error_message(error, advice=advice))
        except (ValueError, RuntimeError) as error:
            self.error(str(error))
        except KeyboardInterrupt:
            self.exit(130, f"{self.prog}: interrupted; run the same command again\n")

    def verify(self, args: argparse.Namespace) -> None:
        """Verifies the data in the folder of ``--verify`` and prints a report. Raises ValueError if it differs."""
        print_verified(args.verify)


class CorpusParser(Parser):
    """A parser for a corpus that can be downloaded."""

    def __init__(self, **kwargs: str):
        super().__init__(**kwargs)
        self.add_argument("--from", dest="source", metavar="PATH", help="take it from here instead of downloading it")
        self.add_argument(
            "--no-verify",
            action="store_true",
            help="with --from: take it as it is, such as an excerpt, without checking hashes",
        )
        self.add_argument(
            "--downloads", metavar="DIR", help="where downloads are kept (default: the folder downloads beside --dest)"
        )

    def run(self, make: Callable[[argparse.Namespace], None], arguments: list[str] | None) -> None:
        """See :meth:`Parser.run`. ``make`` gets a path in ``downloads``."""

        def checked(args: argparse.Namespace) -> None:
            if not args.dest:
                raise ValueError("--dest is missing; give the folder to make")
            if args.no_verify and not args.source:
                raise ValueError("--no-verify is for --from; what is downloaded is always checked")
            args.downloads = Path(args.downloads or Path(args.dest).resolve().parent / "downloads")
            # Before hours of downloading.
            check_replaceable(args.dest, mark=FILE_NAME, force=args.force)
            make(args)

        super().run(checked, arguments)


def positive(text: str) -> int:
    """Parses a number above 0. Raises argparse.ArgumentTypeError if it is none."""
    number = int(text) if text.isdigit() else 0
    if not number:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return number


class Progress(tqdm):
    """A progress bar: one line on a terminal, elsewhere a line every few seconds, or none if that suffices.

    Args:
        total: number of units.
        unit: what is counted: "B", bytes, or "part", parts of generated data.
    """

    # Switches off a thread of tqdm, since processes are forked while bars are shown.
    monitor_interval = 0

    def __init__(self, total: int | None, *, unit: str = "B"):
        quiet = not sys.stderr.isatty()
        wait = QUIET_SECONDS if quiet else 0.1
        super().__init__(
            total=total, unit=unit, unit_scale=unit == "B", file=sys.stderr, leave=False, mininterval=wait, delay=wait,
            ascii=quiet, dynamic_ncols=not quiet,
        )  # fmt: skip

    def advance(self, doing: str, done: int) -> None:
        """Adds units that are done, and shows what is being done."""
        if doing != self.desc:
            self.set_description_str(doing, refresh=False)
        self.update(done)


def download(files: Sequence[RemoteFile], folder: Path, *, at_once: int = 1) -> list[Path]:
    """Calls :func:`~fairseq_expire.corpora.download.fetch` with a progress bar."""
    with Progress(sum(file.size for file in files)) as progress:
        # Without the names: files that are downloaded at once would alternate.
        return fetch(files, folder, at_once=at_once, on_progress=lambda name, num_bytes: progress.update(num_bytes))


def find_local(path: str, names: Sequence[str]) -> Path:
    """Finds a file that the user has.

    Args:
        path: the file, or a folder with it.
        names: its names in a folder, in the order to look for them. It may be compressed.

    Raises:
        ValueError: there is nothing, or none of them.
    """
    place = Path(path)
    if place.is_file():
        return place
    for name in names:
        found = find_named(place, name)
        if found is not None:
            return found
    raise ValueError(f"{place}: expected a file, or a folder with {' or '.join(names)} in it; look at the spelling")


def make_data(
    args: argparse.Namespace, make_job: Callable[[Path], Job], *, check: Callable[[Manifest], None] | None = None
) -> None:
    """Makes the data of a job in ``--dest`` and prints a table of it.

    Args:
        args: the options of :class:`Parser`.
        make_job: called with a folder to :func:`~fairseq_expire.corpora.compressed.unpack` text in.
        check: called with the manifest before the folder appears; raises ValueError if the data is not the corpus.
    """
    with new_folder(args.dest, mark=FILE_NAME, force=args.force) as folder:
        job = make_job(folder)
        sizes = {split: sum(part.num_bytes for part in slices) for split, slices in job.splits.items()}
        counted = 0 if job.dictionary_file else sizes["train"]
        with Progress(counted + sum(sizes.values())) as progress:
            manifest = binarize(job, folder, workers=args.workers, on_progress=progress.advance)
        if check:
            check(manifest)
        remove_unpacked(folder)
    print(table(manifest, job.splits))


def print_verified(folder: str) -> None:
    """Compares the data in a folder with the text it was made of. Raises ValueError if it differs."""
    manifest = read_manifest(folder)
    total = manifest and sum(counts.text_bytes for counts in manifest.splits.values())
    with Progress(total) as progress:
        lines = list(verify(folder, on_progress=progress.advance))
    print("\n".join(lines))


def table(manifest: Manifest, splits: Mapping[str, Sequence[FileSlice]]) -> str:
    """A table with a row for each split, then a line on the corpus.

    A file that is divided counts in each of its splits.
    """
    rows = [("split", "files", "bytes", "characters", "tokens", "unknown")]
    for name, counts in manifest.splits.items():
        rows.append((name, len(splits[name]), counts.source_bytes, counts.text_chars, counts.tokens, counts.unknown))
    lines = [f"{row[0]:<6}" + "".join(f"{column:>15}" for column in row[1:]) for row in rows]
    lines.append(f"{manifest.symbols} symbols in the dictionary")
    if "corpus" in manifest.source:
        checked = {True: "checked by hash", False: "not verified (--no-verify)"}.get(manifest.source["verified"])
        lines.append(f"{manifest.source['corpus']}, {checked or manifest.source['verified']}")
    return "\n".join(lines)
