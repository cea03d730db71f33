"""Prepare WikiText-103 as words, exactly as fairseq-preprocess --only-source does."""

import argparse
from pathlib import Path

from fairseq_expire.fairseq_version import require_for_command

# Before the imports that need fairseq.
require_for_command("wikitext103.py")

from fairseq_expire.corpora import catalogue  # noqa: E402
from fairseq_expire.corpora.binarize import Job  # noqa: E402
from fairseq_expire.corpora.command import CorpusParser, download, find_local, make_data  # noqa: E402
from fairseq_expire.corpora.compressed import extract, names_of, unpack  # noqa: E402
from fairseq_expire.corpora.sources import find_files  # noqa: E402
from fairseq_expire.tokenizers.manifest import Manifest  # noqa: E402
from fairseq_expire.tokenizers.words import Words  # noqa: E402


def build_parser() -> CorpusParser:
    return CorpusParser(
        prog="wikitext103.py",
        description=__doc__,
        epilog="PATH is wikitext-103-v1.zip, or a folder with it or with wiki.train.tokens, wiki.valid.tokens and "
        "wiki.test.tokens (all three, in an excerpt too; each may be compressed, as .gz, .bz2 or .xz).",
    )


# The verification that is possible for files that were extracted before.
PARTLY = "valid and test checked by hash, train by the number of its lines and words"


def find(args: argparse.Namespace) -> tuple[dict[str, Path], bool | str]:
    """Finds or downloads the files, and extracts them if need be.

    Returns:
        The file of each split, and whether, or how, they are verified.
    """
    downloads = args.downloads / "wikitext-103"
    names = catalogue.WIKITEXT103_FILES
    if args.source:
        path = find_local(args.source, [names["train"], catalogue.WIKITEXT103_ZIP.name])
        if names["train"] in names_of(path.name):
            paths = {split: find_local(str(path.parent), [name]) for split, name in names.items()}
            if args.no_verify:
                return paths, False
            # No hash of train is known. `check` compares the number of its lines and words.
            for file in catalogue.WIKITEXT103_CHECKED:
                file.check(find_local(str(path.parent), [file.name]))
            return paths, PARTLY
        if not args.no_verify:
            catalogue.WIKITEXT103_ZIP.check(path)
    else:
        [path] = download([catalogue.WIKITEXT103_ZIP], downloads)
    members = {split: f"{catalogue.WIKITEXT103_FOLDER}/{name}" for split, name in names.items()}
    extracted = extract(path, list(members.values()), downloads)
    return {split: extracted[member] for split, member in members.items()}, not args.no_verify


def check(manifest: Manifest) -> None:
    """Raises ValueError unless the data has the counts that are known of WikiText-103."""
    found = {f"lines of {split}": counts.items for split, counts in manifest.splits.items()}
    expected = {f"lines of {split}": lines for split, lines in catalogue.WIKITEXT103_LINES.items()}
    for split, tokens in catalogue.WIKITEXT103_TOKENS.items():
        found[f"tokens of {split}"], expected[f"tokens of {split}"] = manifest.splits[split].tokens, tokens
    # With fairseq's <s> and <pad>, and filled up to a multiple of 8.
    found["symbols"], expected["symbols"] = manifest.symbols, -(-(catalogue.WIKITEXT103_WORD_TYPES + 2) // 8) * 8
    wrong = [f"{name} {found[name]}, expected {number}" for name, number in expected.items() if found[name] != number]
    if wrong:
        raise ValueError(f"this is not WikiText-103: {'; '.join(wrong)}; for other text there is --no-verify")


def make_job(paths: dict[str, Path], verified: bool | str, folder: Path) -> Job:
    return Job(
        splits=unpack({split: find_files([str(path)], text=True) for split, path in paths.items()}, folder),
        tokenizer=Words(),
        source={"corpus": "WikiText-103", "verified": verified},
    )


def make(args: argparse.Namespace) -> None:
    paths, verified = find(args)
    make_data(args, lambda folder: make_job(paths, verified, folder), check=None if args.no_verify else check)


def main(arguments: list[str] | None = None) -> None:
    build_parser().run(make, arguments)


if __name__ == "__main__":
    main()
