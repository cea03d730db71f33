"""What the scripts of data_prep share: their common options, making data, checking it, and errors in one line."""

import argparse
import errno
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from fairseq_expire.corpora.binarize import Job, binarize, check_unfinished
from fairseq_expire.corpora.compressed import find_named
from fairseq_expire.corpora.download import RemoteFile, fetch
from fairseq_expire.corpora.report import ByteProgress, table
from fairseq_expire.corpora.unpacked import remove_unpacked
from fairseq_expire.corpora.verify import verify
from fairseq_expire.folders import check_new, new_folder
from fairseq_expire.tokenizers.manifest import Manifest, read_manifest

# What the system says of a disk, a quota or a file that is full.
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Parser(argparse.ArgumentParser):
    """Options of a script; those that all scripts have are there from the start."""

    def __init__(self, **kwargs: str):
        super().__init__(**kwargs)
        self.add_argument("--dest", metavar="DIR", help="folder to make")
        self.add_argument("--force", action="store_true", help="replace the data in DIR")
        self.add_argument(
            "--workers",
            type=positive,
            metavar="N",
            help="threads or processes (words) to work with (default: one a core; 8 processes at most)",
        )
        self.add_argument(
            "--verify",
            metavar="DIR",
            help="instead of making data: read DIR's back and compare it with what it was made of",
        )

    def error(self, message: str) -> NoReturn:
        """One line, without the usage, which would bury it."""
        self.exit(2, f"{self.prog}: error: {message}\n")

    def run(self, make: Callable[[argparse.Namespace], None], arguments: list[str] | None) -> None:
        """Call `make` with the options, or do what --verify says; end with one line if something is wrong."""
        args = self.parse_args(arguments)
        # Some of what fairseq imports makes every library tell everything.
        logging.getLogger("urllib3").setLevel(logging.WARNING)
        try:
            if args.verify:
                print_verified(args.verify)
            else:
                make(args)
        except OSError as error:
            advice = "; make room, and the same command goes on from here" if error.errno in NO_ROOM else ""
            if isinstance(error, PermissionError):
                advice = "; change its permissions, or leave it out"
            self.error(f"{error.filename}: {error.strerror}{advice}" if error.filename else str(error))
        except (ValueError, RuntimeError) as error:
            self.error(str(error))
        except KeyboardInterrupt:
            self.exit(130, f"{self.prog}: interrupted; the same command goes on from here\n")


class CorpusParser(Parser):
    """Options of a script for a corpus that can be downloaded."""

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
        """As `Parser.run`; `make` gets a path in `downloads`."""

        def checked(args: argparse.Namespace) -> None:
            if not args.dest:
                raise ValueError("--dest is missing; give the folder to make")
            if args.no_verify and not args.source:
                raise ValueError("--no-verify is for --from; what is downloaded is always checked")
            args.downloads = Path(args.downloads or Path(args.dest).resolve().parent / "downloads")
            # Before hours of downloading.
            check_new(args.dest, force=args.force)
            make(args)

        super().run(checked, arguments)


def positive(text: str) -> int:
    """The number in `text`. Raises argparse.ArgumentTypeError if it is none above zero."""
    number = int(text) if text.isdigit() else 0
    if not number:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return number


def download(files: Sequence[RemoteFile], folder: Path, *, at_once: int = 1) -> list[Path]:
    """As `download.fetch`, and say how far it is."""
    with ByteProgress(sum(file.size for file in files)) as progress:
        # Several files at once would take turns at being named.
        return fetch(files, folder, at_once=at_once, on_progress=lambda name, num_bytes: progress.update(num_bytes))


def find_local(path: str, names: Sequence[str]) -> Path:
    """The file at `path`, or in the folder there the first that is there of these, which may be compressed.

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
    """Make the data of a job in --dest and print what it is.

    Args:
        args: as `Parser` has them.
        make_job: called with a folder to `unpack` compressed text in, once it is clear that the data can be made there.
        check: called with the manifest before the folder appears; raises ValueError if the data is not what it should be.
    """
    with new_folder(args.dest, force=args.force) as folder:
        check_unfinished(folder)
        job = make_job(folder)
        sizes = {split: sum(piece.num_bytes for piece in pieces) for split, pieces in job.splits.items()}
        counted = 0 if job.dictionary_file else sizes["train"]
        with ByteProgress(counted + sum(sizes.values())) as progress:
            manifest = binarize(job, folder, workers=args.workers, on_progress=progress.advance)
        if check:
            check(manifest)
        remove_unpacked(folder)
    print(table(manifest, job.splits))


def print_verified(folder: str) -> None:
    """Compare the data in a folder with what it was made of. Raises ValueError if it differs."""
    manifest = read_manifest(folder)
    total = manifest and sum(counts.text_bytes for counts in manifest.splits.values())
    with ByteProgress(total) as progress:
        lines = list(verify(folder, on_progress=progress.advance))
    print("\n".join(lines))
