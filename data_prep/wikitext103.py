"""WikiText-103 as words, exactly as fairseq-preprocess --only-source makes it of the same files."""

import argparse
from pathlib import Path

from fairseq_expire.fairseq_version import require_for_command

# In front of the imports that need fairseq.
require_for_command("wikitext103.py")

from fairseq_expire.corpora import known as corpora  # noqa: E402
from fairseq_expire.corpora.binarize import Job  # noqa: E402
from fairseq_expire.corpora.command import CorpusParser, download, find_local, make_data  # noqa: E402
from fairseq_expire.corpora.compressed import names_of  # noqa: E402
from fairseq_expire.corpora.sources import find_files  # noqa: E402
from fairseq_expire.corpora.unpacked import unpack  # noqa: E402
from fairseq_expire.tokenizers.manifest import Manifest  # noqa: E402
from fairseq_expire.tokenizers.words import Words  # noqa: E402


def build_parser() -> CorpusParser:
    return CorpusParser(
        prog="wikitext103.py",
        description=__doc__,
        epilog="PATH is wikitext-103-v1.zip, or a folder with it or with wiki.train.tokens, wiki.valid.tokens and "
        "wiki.test.tokens (all three, in an excerpt too; each may be compressed, as .gz, .bz2 or .xz).",
    )


# What can be said of files that were extracted before.
PARTLY = "valid and test checked by hash, train by the number of its lines and words"


def find(args: argparse.Namespace) -> tuple[dict[str, Path], bool | str]:
    """The file of each split, extracted if need be, and whether they are verified."""
    downloads = args.downloads / "wikitext-103"
    names = corpora.WIKITEXT103_FILES
    if args.source:
        path = find_local(args.source, [names["train"], corpora.WIKITEXT103_ZIP.name])
        if names["train"] in names_of(path.name):
            paths = {split: find_local(str(path.parent), [name]) for split, name in names.items()}
            if args.no_verify:
                return paths, False
            # Of train no hash is known; its lines and words are counted in the end.
            for file in corpora.WIKITEXT103_CHECKED:
                file.check(find_local(str(path.parent), [file.name]))
            return paths, PARTLY
        if not args.no_verify:
            corpora.WIKITEXT103_ZIP.check(path)
    else:
        [path] = download([corpora.WIKITEXT103_ZIP], downloads)
    members = {split: f"{corpora.WIKITEXT103_FOLDER}/{name}" for split, name in names.items()}
    extracted = corpora.extract(path, list(members.values()), downloads)
    return {split: extracted[member] for split, member in members.items()}, not args.no_verify


def check(manifest: Manifest) -> None:
    """Raise a ValueError unless the data has the numbers that are known of WikiText-103."""
    found = {f"lines of {split}": counts.items for split, counts in manifest.splits.items()}
    expected = {f"lines of {split}": lines for split, lines in corpora.WIKITEXT103_LINES.items()}
    for split, tokens in corpora.WIKITEXT103_TOKENS.items():
        found[f"tokens of {split}"], expected[f"tokens of {split}"] = manifest.splits[split].tokens, tokens
    # fairseq's <s> and <pad> come on top, and the dictionary is filled up to a multiple of 8.
    found["symbols"], expected["symbols"] = manifest.symbols, -(-(corpora.WIKITEXT103_WORD_TYPES + 2) // 8) * 8
    wrong = [f"{name} {found[name]}, expected {number}" for name, number in expected.items() if found[name] != number]
    if wrong:
        raise ValueError(f"this is not WikiText-103: {'; '.join(wrong)}; for other text there is --no-verify")


def make_job(paths: dict[str, Path], verified: bool | str, folder: Path) -> Job:
    return Job(
        splits=unpack({split: find_files([str(path)], text=True) for split, path in paths.items()}, folder),
        level=Words(),
        source={"corpus": "WikiText-103", "verified": verified},
    )


def make(args: argparse.Namespace) -> None:
    paths, verified = find(args)
    make_data(args, lambda folder: make_job(paths, verified, folder), check=None if args.no_verify else check)


def main(arguments: list[str] | None = None) -> None:
    build_parser().run(make, arguments)


if __name__ == "__main__":
    main()
