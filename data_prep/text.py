"""Prepare any text as bytes, characters, words or subwords: data for fairseq and a manifest. Or get the text back."""

import argparse
import sys
from pathlib import Path

from fairseq_expire.fairseq_version import require_for_command

# Before the imports that need fairseq.
require_for_command("text.py")

from fairseq_expire.corpora.binarize import Job  # noqa: E402
from fairseq_expire.corpora.command import Parser, make_data, positive  # noqa: E402
from fairseq_expire.corpora.compressed import compression, unpack  # noqa: E402
from fairseq_expire.corpora.sources import SPLITS, cut, find_files, parse_shares  # noqa: E402
from fairseq_expire.corpora.verify import restore  # noqa: E402
from fairseq_expire.tokenizers.bound import TOKENIZERS, make_tokenizer  # noqa: E402
from fairseq_expire.tokenizers.chunks import FileSlice  # noqa: E402


def build_parser() -> Parser:
    parser = Parser(
        prog="text.py",
        description=__doc__,
        epilog="Each PATH is a file, or a folder of which every file is taken; hidden and empty ones in it are skipped."
        " Files that gzip, bzip2 or xz compressed are read as the text in them, and GLOB matches their names with and "
        "without .gz, .bz2 or .xz.",
    )
    parser.add_argument("--level", choices=TOKENIZERS, help="what a symbol is")
    for split in SPLITS:
        parser.add_argument(f"--{split}", nargs="+", metavar="PATH", help=f"text of the {split} split")
    parser.add_argument("--input", nargs="+", metavar="PATH", help="text of all splits, which --split divides")
    parser.add_argument("--split", metavar="SHARES", help="shares of train, valid and test, such as 0.9,0.05,0.05")
    parser.add_argument(
        "--include",
        action="append",
        default=[],
        metavar="GLOB",
        help="take only files in folders whose name matches this",
    )
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="GLOB",
        help="skip files and folders in folders whose name matches",
    )
    parser.add_argument(
        "--dict", metavar="FILE", help="use this dict.txt (a trained model's) instead of making one of train"
    )
    parser.add_argument(
        "--append-eos", action="store_true", help="end every file with </s> (not words: there every line does)"
    )
    parser.add_argument("--vocab-size", type=positive, metavar="N", help="pieces of the subword model (default: 32000)")
    parser.add_argument(
        "--threshold", type=int, default=0, metavar="N", help="words seen less often in train become <unk> (default: 0)"
    )
    parser.add_argument(
        "--restore",
        nargs=2,
        metavar=("DIR", "SPLIT"),
        help="instead of all this: write the text of DIR's SPLIT to stdout",
    )
    return parser


def check(args: argparse.Namespace) -> None:
    """Raises ValueError for options that do not go together."""
    if not args.level or not args.dest:
        raise ValueError(
            f"{'--dest' if args.level else '--level'} is missing; give --level, --dest and --train, or --restore"
        )
    if args.input and (args.train or args.valid or args.test):
        raise ValueError("--input and --train, --valid or --test are both given; --input with --split is all of them")
    if bool(args.input) != bool(args.split):
        raise ValueError("--input and --split go together; give both, or --train")
    if not args.input and not args.train and not (args.dict and (args.valid or args.test)):
        raise ValueError("--train is missing; give it, or --input with --split, or --dict with --valid or --test")
    if args.dict and args.threshold:
        raise ValueError("--threshold makes a dictionary smaller, and --dict is used as it is; leave one of them out")
    if args.dict and Path(args.dict).is_dir():
        raise ValueError(f"--dict {args.dict}: a folder; give the dict.txt in it")
    if args.dict and not Path(args.dict).is_file():
        raise ValueError(f"--dict {args.dict}: there is no such file; look at the spelling and the current folder")
    if args.dict and (kind := compression(args.dict)):
        raise ValueError(f"--dict {args.dict}: {kind} data; unpack it and give the dict.txt in it")
    if args.level == "words" and args.append_eos:
        raise ValueError("--append-eos is not for words, of which every line ends with </s>; leave it out")
    if args.level != "words" and args.threshold:
        raise ValueError("--threshold is for words; leave it out")
    if args.vocab_size and (args.level != "subword" or args.dict):
        raise ValueError("--vocab-size is for learning a model of --level subword; leave it out")
    for path in [*(args.input or []), *(args.train or []), *(args.valid or []), *(args.test or [])]:
        # The next run would read the data of this one.
        if Path(args.dest).resolve().is_relative_to(Path(path).resolve()):
            raise ValueError(f"--dest {args.dest}: lies in {path}, which is read; choose a folder outside")


def gather(args: argparse.Namespace, folder: Path) -> dict[str, list[FileSlice]]:
    """Finds the text of each split. Compressed files are unpacked into ``folder``."""
    shares = parse_shares(args.split) if args.input else None
    given = {"input": args.input} if args.input else {split: vars(args)[split] for split in SPLITS if vars(args)[split]}
    options = {"include": args.include, "exclude": args.exclude, "text": args.level != "bytes"}
    found = unpack({name: find_files(paths, **options) for name, paths in given.items()}, folder)
    return cut(found["input"], shares=shares, level=args.level) if args.input else found


def make_job(args: argparse.Namespace, folder: Path) -> Job:
    return Job(
        splits=gather(args, folder),
        tokenizer=make_tokenizer(args.level, {"vocab_size": args.vocab_size} if args.vocab_size else {}),
        append_eos=args.append_eos,
        threshold=args.threshold,
        dictionary_file=Path(args.dict) if args.dict else None,
        source={"split": args.split, "include": args.include, "exclude": args.exclude},
    )


def make(args: argparse.Namespace) -> None:
    if args.restore:
        folder, split = args.restore
        for part in restore(folder, split=split):
            sys.stdout.buffer.write(part)
        sys.stdout.buffer.flush()
        return
    check(args)
    make_data(args, lambda folder: make_job(args, folder))


def main(arguments: list[str] | None = None) -> None:
    build_parser().run(make, arguments)


if __name__ == "__main__":
    main()
