"""Answers in text that is generated: the intervals of tokens that a language model has to predict without a mistake.

They are whole lines, without the line end. In words and in subwords a line end is a token of its own, so that intervals
are exact. ``<split>.answers.npy`` holds them, int64 [answers, 2]: the first token of an answer, and the one after its
last, counted from the start of the split.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fairseq_expire import requires_fairseq  # noqa: F401

# isort: split
from fairseq.data.indexed_dataset import best_fitting_int_dtype

from fairseq_expire.corpora.compressed import UNPACKED
from fairseq_expire.corpora.split_files import READ_TOKENS, check_crc32
from fairseq_expire.corpora.workers import PROCESSES, available_cores, ordered_map
from fairseq_expire.files import file_crc32, naming_file_in_errors
from fairseq_expire.tokenizers.bound import BoundTokenizer
from fairseq_expire.tokenizers.chunks import FileSlice
from fairseq_expire.tokenizers.manifest import FILE_NAME, Manifest, read_manifest, write_manifest


def answers_path(folder: str | Path, split: str) -> Path:
    """The file with the answers of a split."""
    return Path(folder, f"{split}.answers.npy")


class TextPart(NamedTuple):
    """A stretch of the text of a split.

    Args:
        text: its lines, each with its end.
        lines: their number.
        answers: the numbers of the lines that are answers, int64 [answers], ascending from 0.
    """

    text: bytes
    lines: int
    answers: np.ndarray


def write_texts(
    make_part: Callable[[str, int], TextPart],
    num_parts: Mapping[str, int],
    folder: Path,
    *,
    workers: int | None = None,
    on_progress: Callable[[str, int], None] = lambda split, parts: None,
) -> tuple[dict[str, list[FileSlice]], dict[str, np.ndarray]]:
    """Writes the text of each split, for a :class:`~fairseq_expire.corpora.binarize.Job`.

    Args:
        make_part: makes a part of a split; called by several processes with the split and the number of the part.
        num_parts: the number of parts of each split, at least one.
        folder: where data is made. :func:`~fairseq_expire.corpora.compressed.remove_unpacked` removes the text.
        workers: number of processes; None for one a core, but at most ``PROCESSES``.
        on_progress: called with the name of the split and 1 after every part.

    Returns:
        The text of each split, and the numbers of its lines that are answers, int64 [answers].

    Raises:
        OSError: a file cannot be written; names it.
        RuntimeError: a worker was killed.
    """
    if workers is None:
        workers = min(available_cores(), PROCESSES)
    texts, lines = {}, {}
    (folder / UNPACKED).mkdir(exist_ok=True)
    for split, number in num_parts.items():
        path, answers, num_lines = folder / UNPACKED / split, [], 0
        with (
            naming_file_in_errors(path),
            open(path, "wb") as file,
            ordered_map(
                partial(make_part, split), range(number), workers=min(workers, number), in_processes=True
            ) as parts,
        ):
            for part in parts:
                file.write(part.text)
                answers.append(part.answers + num_lines)
                num_lines += part.lines
                on_progress(split, 1)
        texts[split], lines[split] = [FileSlice(path, 0, path.stat().st_size)], np.concatenate(answers)
    return texts, lines


def write_answers(folder: str | Path, manifest: Manifest, lines: Mapping[str, np.ndarray]) -> Manifest:
    """Writes the answers of each split, and their numbers and checksums to manifest.json.

    Args:
        folder: complete data of words or subwords.
        manifest: of this data.
        lines: the numbers of the lines that are answers, for each split, int64 [answers], ascending from 0.

    Returns:
        The manifest with "answers" in its source.

    Raises:
        ValueError: an answer has a token that is ``<unk>``.
        RuntimeError: a split has fewer lines.
    """
    written = {}
    tokenizer = BoundTokenizer.load(folder)
    for split, numbers in lines.items():
        path = answers_path(folder, split)
        intervals = _line_intervals(Path(folder, f"{split}.bin"), numbers, tokenizer)
        with naming_file_in_errors(path):
            np.save(path, intervals)
        written[split] = {"number": len(intervals), "crc32": file_crc32(path)}
    manifest = replace(manifest, source={**manifest.source, "answers": written})
    write_manifest(folder, manifest)
    return manifest


def verify_answers(folder: str | Path) -> Iterator[str]:
    """Compares the files of answers with the manifest.

    Yields:
        A line for each split that is correct.

    Raises:
        ValueError: a file differs, or the data has no answers.
    """
    manifest = read_manifest(folder)
    if manifest is None or "answers" not in manifest.source:
        raise ValueError(f"{Path(folder, FILE_NAME)}: the data has no answers; verify it with data_prep/text.py")
    for split, answers in manifest.source["answers"].items():
        check_crc32(answers_path(folder, split), answers["crc32"])
        yield f"{split}: {answers['number']} answers: as made"


def _line_intervals(path: Path, numbers: np.ndarray, tokenizer: BoundTokenizer) -> np.ndarray:
    """The tokens of lines without their ends, int64 [lines, 2]. Memory grows with the number of these lines alone."""
    dtype = np.dtype(best_fitting_int_dtype(len(tokenizer.symbols)))
    [line_end], unknown = tokenizer.encode("\n"), tokenizer.dictionary.unk()
    intervals = np.zeros((len(numbers), 2), dtype=np.int64)
    # Before the tokens that are read next: the number of lines that end, where the last one ends, and of tokens.
    ended = start = place = 0
    with open(path, "rb") as file:
        while len(ids := np.frombuffer(file.read(READ_TOKENS * dtype.itemsize), dtype=dtype)):
            ends = np.flatnonzero(ids == line_end) + place
            starts = np.concatenate([[start], ends + 1])
            first, last = np.searchsorted(numbers, [ended, ended + len(ends)])
            chosen = numbers[first:last] - ended
            intervals[first:last] = np.stack([starts[chosen], ends[chosen]], axis=1)
            unknown_lines = ended + np.searchsorted(ends, np.flatnonzero(ids == unknown) + place)
            # The last line may end after these tokens.
            if np.isin(unknown_lines, numbers[first : last + 1]).any():
                raise ValueError(f"{path.stem}: an answer has a word that the dictionary lacks; lower --threshold")
            ended, start, place = ended + len(ends), int(starts[-1]), place + len(ids)
    if len(numbers) and numbers[-1] >= ended:
        raise RuntimeError(f"{path}: {ended} lines, and an answer is line {numbers[-1]}")
    return intervals
