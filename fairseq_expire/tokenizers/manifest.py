"""manifest.json, which tells what the data beside it was made of and how much of it there is."""

import json
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Optional

from fairseq_expire.files import write_atomically

FORMAT = 3
FILE_NAME = "manifest.json"


@dataclass(frozen=True)
class SplitCounts:
    """How much there is in a split.

    `tokens` are all symbol ids, those of `</s>` and `<unk>` included; `unknown` of them stand for a symbol that is not in
    the dictionary. `text_bytes` and `text_chars` are the length of the text that they stand for, and `text_sha256` is its
    hash: the text they were made of, in which what was left out is missing and every unknown symbol is replaced (by "?" in
    bytes, U+FFFD in characters and subwords, `<unk>` in words), and in words the white space is normalised. `source_bytes` is the length
    of the text before that. `bin_crc32` and `idx_crc32` are of the files. `words` is how many words the text has by the count that its publisher or its corpus uses.
    """

    tokens: int
    items: int
    unknown: int
    source_bytes: int
    text_bytes: int
    text_chars: int
    text_sha256: str
    bin_crc32: int
    idx_crc32: int
    words: int | None = None


@dataclass(frozen=True)
class Manifest:
    """`level` is "bytes", "chars", "words" or "subword", and `options` are its own; `source` says how the splits were chosen
    ("corpus", where it has a name, "verified", whether its hashes were checked or else which, and what options chose it); `version` is the
    one of this package that wrote the data; `symbols` the length of the dictionary, special symbols included;
    `dictionary_sha256` is over the bytes of dict.txt."""

    version: str
    level: str
    options: dict[str, Any]
    source: dict[str, Any]
    append_eos: bool
    symbols: int
    dictionary_sha256: str
    splits: dict[str, SplitCounts]


# What JSON makes of a field of the classes above, by the type it is declared with.
JSON_TYPES = {int: int, Optional[int]: int, str: str, bool: bool, dict[str, Any]: dict, dict[str, SplitCounts]: dict}


def write_manifest(folder: str | Path, manifest: Manifest) -> None:
    """Write manifest.json into `folder`."""
    content = {"format": FORMAT, **asdict(manifest)}
    for counts in content["splits"].values():
        if counts["words"] is None:
            del counts["words"]
    write_atomically(Path(folder, FILE_NAME), json.dumps(content, indent=2) + "\n")


def read_manifest(folder: str | Path) -> Manifest | None:
    """The manifest in `folder`; None if there is none, as beside data that fairseq-preprocess wrote.

    Raises:
        ValueError: the file is damaged, or of a format that this version does not know.
    """
    path = Path(folder, FILE_NAME)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise _damaged(path, f"not JSON ({error})") from None
    if not isinstance(content, dict):
        raise _damaged(path, "not a JSON object")
    if content.pop("format", None) != FORMAT:
        raise _damaged(path, f"its format is not {FORMAT}, the one this version reads")
    splits = content.get("splits")
    if not isinstance(splits, dict):
        raise _damaged(path, "it has no object named splits")
    content["splits"] = {
        name: _build(SplitCounts, counts, path, f"in split {name}, ") for name, counts in splits.items()
    }
    return _build(Manifest, content, path, "")


def _build(kind: type, content: Any, path: Path, place: str) -> Any:
    """A `kind` from a JSON object with its fields, each of its type, and no others; one with a default may be missing."""
    if not isinstance(content, dict):
        raise _damaged(path, f"{place}expected an object")
    for field in fields(kind):
        if field.name not in content and field.default is MISSING:
            raise _damaged(path, f"{place}{field.name} is missing")
    types = {field.name: field.type for field in fields(kind)}
    for name, value in content.items():
        if name not in types:
            raise _damaged(path, f"{place}{name} is not expected")
        expected = JSON_TYPES[types[name]]
        if type(value) is not expected:
            raise _damaged(path, f"{place}{name} is {value!r}, expected {expected.__name__}")
    return kind(**content)


def _damaged(path: Path, what: str) -> ValueError:
    return ValueError(f"{path}: {what}; restore the file, or make the data again")
