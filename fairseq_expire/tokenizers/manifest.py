"""manifest.json: what the data beside it was made of, how, and how much of it there is."""

import json
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fairseq_expire.files import file_sha256, write_atomically

# The formats of the two manifests that have this name: that of text, and that of labelled data.
FORMAT = 3
LABELLED_FORMAT = "labelled 1"
FILE_NAME = "manifest.json"


@dataclass(frozen=True)
class SplitCounts:
    """The size of a split and the checksums of its text and files.

    Args:
        tokens: symbol ids, those of ``</s>`` and ``<unk>`` included.
        items: items of the indexed dataset.
        unknown: ids that stand for a symbol that the dictionary lacks.
        source_bytes: length of the original text.
        text_bytes: length of the text that the ids stand for. It is the original text without what was left out. One
            text stands for each unknown symbol ("?" in bytes, U+FFFD in characters and subwords, ``<unk>`` in words),
            and in words the white space is normalised.
        text_chars: its length in characters.
        text_sha256: its SHA-256, in hexadecimal.
        bin_crc32: CRC-32 of the .bin file.
        idx_crc32: CRC-32 of the .idx file.
        words: number of words by the count that the corpus or its publisher uses; None if there is no such count.
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
    """The content of manifest.json.

    Args:
        version: version of this package that wrote the data.
        level: name of the tokenizer: "bytes", "chars", "words" or "subword".
        options: the tokenizer's options.
        source: how the text was chosen: "corpus", its name if it has one; "verified", True or False: were all
            hashes checked; or a text that says which; and the options that chose it.
        append_eos: True if every file ends in ``</s>``.
        symbols: size of the dictionary, special symbols included.
        dictionary_sha256: SHA-256 of dict.txt, in hexadecimal.
        splits: the counts of each split.
    """

    version: str
    level: str
    options: dict[str, Any]
    source: dict[str, Any]
    append_eos: bool
    symbols: int
    dictionary_sha256: str
    splits: dict[str, SplitCounts]

    @property
    def lines_end_in_eos(self) -> bool:
        """True if every line of the text, not only a document, ends in ``</s>``."""
        return self.level == "words" or self.options.get("newlines") == "eos"

    def check_dictionary_file(self, path: Path) -> None:
        """Raises ValueError if a dict.txt is not the file that the data was written with."""
        if file_sha256(path) != self.dictionary_sha256:
            raise ValueError(
                f"{path}: not the file that manifest.json names and the data beside it was made with; restore it, or "
                "prepare or export again"
            )


@dataclass(frozen=True)
class LabelledCounts:
    """The size of a split of labelled data and the checksums of its files.

    Args:
        tokens: input symbols, and as many labels.
        items: items of either indexed dataset. Both have the same ones.
        labels: labels that count, which are all but ``<pad>``.
        input_bin_crc32: CRC-32 of the inputs' .bin file.
        input_idx_crc32: CRC-32 of the inputs' .idx file.
        label_bin_crc32: CRC-32 of the labels' .bin file.
        label_idx_crc32: CRC-32 of the labels' .idx file.
    """

    tokens: int
    items: int
    labels: int
    input_bin_crc32: int
    input_idx_crc32: int
    label_bin_crc32: int
    label_idx_crc32: int


@dataclass(frozen=True)
class LabelledManifest:
    """The content of manifest.json beside generated data with labels.

    Args:
        version: version of this package that wrote the data.
        numpy: version of numpy that drew the random numbers.
        corpus: name of the generator.
        parameters: all that determines the data, the seed included.
        symbols: size of the inputs' dictionary, special symbols included.
        labels: size of the labels' dictionary, special symbols included.
        input_dictionary_sha256: SHA-256 of the inputs' dict.txt, in hexadecimal.
        label_dictionary_sha256: SHA-256 of the labels' dict.txt, in hexadecimal.
        splits: the counts of each split.
    """

    version: str
    numpy: str
    corpus: str
    parameters: dict[str, Any]
    symbols: int
    labels: int
    input_dictionary_sha256: str
    label_dictionary_sha256: str
    splits: dict[str, LabelledCounts]


# The type that JSON gives a field of the classes above, by its declared type.
JSON_TYPES: dict[Any, type] = {
    int: int,
    int | None: int,
    str: str,
    bool: bool,
    dict[str, Any]: dict,
    dict[str, SplitCounts]: dict,
    dict[str, LabelledCounts]: dict,
}


def write_manifest(folder: str | Path, manifest: Manifest | LabelledManifest) -> None:
    """Writes manifest.json into ``folder``."""
    content = {"format": FORMAT if isinstance(manifest, Manifest) else LABELLED_FORMAT, **asdict(manifest)}
    for counts in content["splits"].values():
        if "words" in counts and counts["words"] is None:
            del counts["words"]
    write_atomically(Path(folder, FILE_NAME), json.dumps(content, indent=2) + "\n")


def read_manifest(folder: str | Path) -> Manifest | None:
    """Reads manifest.json from ``folder``. Returns None if there is none, as beside data of fairseq-preprocess.

    Raises:
        ValueError: the file is damaged, or of a format that this version does not know.
    """
    path = Path(folder, FILE_NAME)
    content = _read_object(path)
    if content is None:
        return None
    if content.get("format") == LABELLED_FORMAT:
        raise ValueError(
            f"{path}: the data beside it is labelled ({content.get('corpus')}), expected text; read it with "
            "--task memory_caching_tagging, and verify or restore it with the script that made it"
        )
    return _build_manifest(Manifest, SplitCounts, FORMAT, content, path)


def read_labelled_manifest(folder: str | Path) -> LabelledManifest | None:
    """Reads manifest.json from a folder of labelled data. Returns None if there is none.

    Raises:
        ValueError: the file is damaged, or describes text, or is of a format that this version does not know.
    """
    path = Path(folder, FILE_NAME)
    content = _read_object(path)
    if content is None:
        return None
    if content.get("format") == FORMAT:
        raise ValueError(
            f"{path}: the data beside it is text, expected labelled data; read it with --task memory_caching_lm, and "
            "verify or restore it with data_prep/text.py"
        )
    return _build_manifest(LabelledManifest, LabelledCounts, LABELLED_FORMAT, content, path)


def _read_object(path: Path) -> dict[str, Any] | None:
    """Reads a JSON object, or None if there is no file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise _damaged(path, f"not JSON ({error})") from None
    if not isinstance(content, dict):
        raise _damaged(path, "not a JSON object")
    return content


def _build_manifest(kind: type, counts_kind: type, version: int | str, content: dict[str, Any], path: Path) -> Any:
    """Makes a manifest, with the counts of its splits, of a JSON object."""
    if content.pop("format", None) != version:
        raise _damaged(path, f"its format is not {version}, the one this version reads")
    splits = content.get("splits")
    if not isinstance(splits, dict):
        raise _damaged(path, "it has no object named splits")
    content["splits"] = {
        name: _build(counts_kind, counts, path, f"in split {name}, ") for name, counts in splits.items()
    }
    return _build(kind, content, path, "")


def _build(kind: type, content: Any, path: Path, place: str) -> Any:
    """Makes a ``kind`` of a JSON object.

    Every field without a default must be there, with its type, and nothing else.
    """
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
