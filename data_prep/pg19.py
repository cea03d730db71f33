"""Prepare PG-19, 28,752 books of Project Gutenberg, as characters or subwords: an item a book, each ending in </s>."""

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fairseq_expire.fairseq_version import require_for_command

# Before the imports that need fairseq.
require_for_command("pg19.py")

from fairseq_expire.corpora.binarize import Job  # noqa: E402
from fairseq_expire.corpora.catalogue import PG19_SPLITS, PG19_WORDS, pg19_books  # noqa: E402
from fairseq_expire.corpora.command import CorpusParser, download, make_data, positive  # noqa: E402
from fairseq_expire.corpora.compressed import find_named, unpack  # noqa: E402
from fairseq_expire.corpora.download import RemoteFile  # noqa: E402
from fairseq_expire.corpora.sources import find_files  # noqa: E402
from fairseq_expire.corpora.workers import available_cores, ordered_map  # noqa: E402
from fairseq_expire.tokenizers.bytes_and_chars import Chars  # noqa: E402
from fairseq_expire.tokenizers.chunks import FileSlice  # noqa: E402
from fairseq_expire.tokenizers.subwords import Subwords  # noqa: E402
from fairseq_expire.tokenizers.tokenizer import LINE_ENDS  # noqa: E402

# Books to download at the same time.
AT_ONCE = 8


def build_parser() -> CorpusParser:
    parser = CorpusParser(
        prog="pg19.py",
        description=__doc__,
        epilog="PATH is a folder with the folders train, validation and test in it; the books there may be compressed, "
        "as .gz, .bz2 or .xz.",
    )
    parser.add_argument(
        "--level", choices=["chars", "subword"], default="chars", help="what a symbol is (default: chars)"
    )
    parser.add_argument("--vocab-size", type=positive, metavar="N", help="pieces of the subword model (default: 32000)")
    parser.add_argument(
        "--line-ends",
        choices=LINE_ENDS,
        default="normalise",
        help=r"make every line end \n (the default), or keep them as they are",
    )
    parser.add_argument("--books", type=positive, metavar="N", help="only the first N books of each split, for a trial")
    return parser


def find(args: argparse.Namespace) -> dict[str, list[FileSlice]]:
    """Finds or downloads the books of each split, and checks them unless ``--no-verify`` is given."""
    if args.no_verify:
        splits = {
            split: find_files([f"{args.source}/{name}"], include=["*.txt"], text=True)
            for split, name in PG19_SPLITS.items()
        }
        return {split: found[: args.books] for split, found in splits.items()}
    books = {split: files[: args.books] for split, files in pg19_books().items()}
    everything = [file for files in books.values() for file in files]
    if args.source:
        folder = Path(args.source)
        check(everything, folder, args.workers)
    else:
        folder = args.downloads / "pg19"
        download(everything, folder, at_once=AT_ONCE)
    # Leave out the one book that is empty.
    return {
        split: [FileSlice(find_named(folder, file.name), 0, file.size) for file in files if file.size]
        for split, files in books.items()
    }


def check(files: list[RemoteFile], folder: Path, workers: int | None) -> None:
    """Raises ValueError unless all files are in the folder and have the right hash."""
    paths = [find_named(folder, file.name) for file in files]
    missing = [file.name for file, path in zip(files, paths) if path is None]
    if missing:
        raise ValueError(
            f"{folder}: {len(missing)} of {len(files)} books are missing, {missing[0]} for one; add them, ask for "
            "fewer with --books, or take what is there with --no-verify"
        )
    with ThreadPoolExecutor(workers or available_cores()) as executor:
        for _ in executor.map(RemoteFile.check, files, paths):
            pass


def count_words(book: FileSlice) -> int:
    """Counts the words of a book between white space."""
    return len(book.path.read_text(encoding="utf-8", errors="replace").split())


def make_job(args: argparse.Namespace, found: dict[str, list[FileSlice]], folder: Path) -> Job:
    splits = unpack(found, folder)
    source = {"corpus": "PG-19", "verified": not args.no_verify, "books": args.books}
    if args.no_verify or args.books:
        source["words"] = "counted between white space"
        words = {}
        for split, books in splits.items():
            workers = min(args.workers or available_cores(), len(books))
            with ordered_map(count_words, books, workers=workers, in_processes=True) as counts:
                words[split] = sum(counts)
    else:
        source["words"] = "as published"
        words = PG19_WORDS
    if args.level == "chars":
        tokenizer = Chars(line_ends=args.line_ends)
    else:
        tokenizer = Subwords(vocab_size=args.vocab_size or 32000, line_ends=args.line_ends)
    return Job(splits=splits, tokenizer=tokenizer, append_eos=True, item_per_file=True, source=source, words=words)


def make(args: argparse.Namespace) -> None:
    if args.vocab_size and args.level != "subword":
        raise ValueError("--vocab-size is for --level subword; leave it out")
    splits = find(args)
    make_data(args, lambda folder: make_job(args, splits, folder))


def main(arguments: list[str] | None = None) -> None:
    build_parser().run(make, arguments)


if __name__ == "__main__":
    main()
