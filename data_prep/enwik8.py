"""Prepare enwik8, the first 100 million bytes of an English Wikipedia dump, as bytes: 90, 5 and 5 million."""

import argparse
import zipfile
from fractions import Fraction
from pathlib import Path

from fairseq_expire.fairseq_version import require_for_command

# Before the imports that need fairseq.
require_for_command("enwik8.py")

from fairseq_expire.corpora.binarize import Job  # noqa: E402
from fairseq_expire.corpora.catalogue import ENWIK8, ENWIK8_ZIP  # noqa: E402
from fairseq_expire.corpora.command import CorpusParser, download, find_local, make_data  # noqa: E402
from fairseq_expire.corpora.compressed import extract, unpack  # noqa: E402
from fairseq_expire.corpora.sources import cut, find_files  # noqa: E402
from fairseq_expire.tokenizers.bytes_and_chars import NEWLINES, Bytes  # noqa: E402

SHARES = (Fraction(90, 100), Fraction(5, 100), Fraction(5, 100))


def build_parser() -> CorpusParser:
    parser = CorpusParser(
        prog="enwik8.py",
        description=__doc__,
        epilog="PATH is enwik8 (or enwik8.gz, .bz2, .xz), enwik8.zip, or a folder with one of them.",
    )
    parser.add_argument(
        "--newlines",
        choices=NEWLINES,
        default="keep",
        help="what becomes of line ends: a symbol as every other byte (the default), nothing, or </s>",
    )
    return parser


def find(args: argparse.Namespace) -> Path:
    """Finds or downloads the text, extracts it if need be, and checks it unless ``--no-verify`` is given."""
    downloads = args.downloads / "enwik8"
    if args.source:
        path = find_local(args.source, [ENWIK8.name, ENWIK8_ZIP.name])
        zipped = zipfile.is_zipfile(path)
        if zipped and not args.no_verify:
            ENWIK8_ZIP.check(path)
    else:
        [path], zipped = download([ENWIK8_ZIP], downloads), True
    if zipped:
        path = extract(path, [ENWIK8.name], downloads)[ENWIK8.name]
    # Refuses archives by name, before the hash does.
    find_files([str(path)])
    if not args.no_verify:
        ENWIK8.check(path)
    return path


def make_job(args: argparse.Namespace, path: Path, folder: Path) -> Job:
    source = {"corpus": "enwik8", "verified": not args.no_verify}
    if not args.no_verify and args.newlines != "drop":
        # All splits together are the file again, which --verify checks.
        source["sha256"] = ENWIK8.sha256
    found = unpack({"all": find_files([str(path)])}, folder)
    splits = cut(found["all"], shares=SHARES, level="bytes")
    return Job(splits=splits, tokenizer=Bytes(newlines=args.newlines), source=source)


def make(args: argparse.Namespace) -> None:
    path = find(args)
    make_data(args, lambda folder: make_job(args, path, folder))


def main(arguments: list[str] | None = None) -> None:
    build_parser().run(make, arguments)


if __name__ == "__main__":
    main()
