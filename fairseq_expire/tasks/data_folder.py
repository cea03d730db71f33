"""A folder of data as the task gets it, with checks that dictionary, manifest and splits belong together."""

from pathlib import Path
from typing import NamedTuple

from fairseq.data import Dictionary

from fairseq_expire.fairseq_patches.fusion import translation_dictionaries
from fairseq_expire.files import file_sha256
from fairseq_expire.tokenizers.bound import make_tokenizer
from fairseq_expire.tokenizers.dictionary import PlainDictionary
from fairseq_expire.tokenizers.manifest import FILE_NAME, Manifest, read_labelled_manifest, read_manifest


def read_dictionary(folder: Path) -> Dictionary:
    """Reads the dictionary that the data in a folder was made with.

    Raises:
        FileNotFoundError: there is no dictionary.
        ValueError: the dictionary or the manifest is damaged, or they do not belong together.
    """
    # First, since a folder of labelled data has no dict.txt, and its manifest says so.
    manifest = read_manifest(folder)
    path = folder / "dict.txt"
    if not path.is_file():
        languages = ", ".join(name.name for name in translation_dictionaries(folder))
        raise FileNotFoundError(
            f"no dict.txt in {folder}: expected a data-bin made by data_prep/text.py or fairseq-preprocess"
            + (f"; for --lm-path, copy the one of the target language there, of {languages}" if languages else "")
        )
    if manifest:
        manifest.check_dictionary_file(path)
    dictionary = _load(path)
    if manifest:
        _check_manifest(manifest, folder / FILE_NAME, symbols=len(dictionary))
    return dictionary


def _load(path: Path) -> Dictionary:
    """Reads a dictionary with fairseq. Raises ValueError, with the line, if fairseq cannot read it."""
    try:
        return Dictionary.load(str(path))
    # Any exception: fairseq's differ by the fault, and name neither the file nor the line.
    except Exception as refused:
        reason = refused
        try:
            PlainDictionary.load(path)
        except ValueError as error:
            reason = error
        raise ValueError(f"{path} is not a dictionary ({reason}): restore it, or prepare the data again") from None


def _check_manifest(manifest: Manifest, path: Path, *, symbols: int) -> None:
    if manifest.symbols != symbols:
        raise ValueError(
            f"{path}: {manifest.symbols} symbols, and dict.txt has {symbols}; restore the file, or make the data again"
        )
    try:
        make_tokenizer(manifest.level, manifest.options)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; restore the file, or make the data again") from None


def check_split(folder: Path, split: str, *, tokens: int) -> None:
    """Raises ValueError if a folder's manifest does not describe the files of a split.

    Args:
        folder: with the manifest, or without one.
        split: its name.
        tokens: the number of tokens in its files.
    """
    manifest: Manifest | None = read_manifest(folder)
    counts = manifest.splits.get(split) if manifest else None
    if counts is None:
        return
    if counts.tokens != tokens:
        raise ValueError(
            f"{folder / FILE_NAME}: {counts.tokens} tokens in split {split}, and its files hold {tokens}; restore the "
            "files, or make the data again"
        )
    # Scores are divided by these counts.
    if tokens and not (counts.text_bytes > 0 and counts.text_chars > 0):
        raise ValueError(
            f"{folder / FILE_NAME}: {counts.text_bytes} bytes and {counts.text_chars} characters in split {split}, "
            f"which has {tokens} tokens; restore the file, or make the data again"
        )


class LabelledDictionaries(NamedTuple):
    """The two dictionaries of labelled data."""

    inputs: Dictionary
    labels: Dictionary


def read_labelled_dictionaries(folder: Path) -> LabelledDictionaries:
    """Reads the dictionaries that labelled data in a folder was made with.

    Raises:
        FileNotFoundError: a dictionary is missing.
        ValueError: a dictionary or the manifest is damaged, or they do not belong together.
    """
    manifest = read_labelled_manifest(folder)
    paths = [folder / name / "dict.txt" for name in ("input0", "label")]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(
                f"no {path}: expected labelled data, with inputs in {folder}/input0 and a label for each in "
                f"{folder}/label, as a script of data_prep or two runs of fairseq-preprocess make it"
            )
    dictionaries = LabelledDictionaries(*(_load(path) for path in paths))
    if manifest:
        hashes = (manifest.input_dictionary_sha256, manifest.label_dictionary_sha256)
        for path, sha256 in zip(paths, hashes):
            if file_sha256(path) != sha256:
                raise ValueError(
                    f"{path}: not the file that {folder / FILE_NAME} names and the data was made with; restore it, or "
                    "make the data again"
                )
    return dictionaries


def check_labelled_split(folder: Path, split: str, *, tokens: int, labels: int) -> None:
    """Raises ValueError if a folder's manifest does not describe the files of a split.

    Args:
        folder: with the manifest, or without one.
        split: its name.
        tokens: the number of tokens in its files.
        labels: the number of labels that count in them.
    """
    manifest = read_labelled_manifest(folder)
    counts = manifest.splits.get(split) if manifest else None
    if counts is not None and (counts.tokens, counts.labels) != (tokens, labels):
        raise ValueError(
            f"{folder / FILE_NAME}: {counts.tokens} tokens with {counts.labels} labels that count in split {split}, "
            f"and its files hold {tokens} with {labels}; restore the files, or make the data again"
        )
