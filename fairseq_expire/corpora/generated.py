"""Generated corpora with labels: written for ``--task memory_caching_tagging``, generated again to verify, restored.

A folder holds two aligned streams in fairseq's convention for tagging: ``input0`` and ``label``, each with dict.txt and
splits. Every part that a generator makes is an item of both. A label that does not count is ``<pad>``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from fairseq_expire import requires_fairseq  # noqa: F401

# isort: split
from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import best_fitting_int_dtype

from fairseq_expire import __version__
from fairseq_expire.corpora.sources import SPLITS
from fairseq_expire.corpora.split_files import check_crc32, open_split, read_item_ends, read_split
from fairseq_expire.corpora.workers import PROCESSES, available_cores, ordered_map
from fairseq_expire.files import file_crc32, file_sha256, naming_file_in_errors
from fairseq_expire.tokenizers.manifest import (
    FILE_NAME,
    LabelledCounts,
    LabelledManifest,
    read_labelled_manifest,
    write_manifest,
)

# The folders of the two streams, as fairseq names them.
INPUTS, LABELS = "input0", "label"


class Part(NamedTuple):
    """A stretch of a split, not empty.

    Args:
        symbols: integers [length], indices of ``Generator.symbols``.
        labels: integers [length], indices of ``Generator.labels``, and -1 where no label counts.
    """

    symbols: np.ndarray
    labels: np.ndarray


class Generator(Protocol):
    """A source of labelled data.

    Parts are simulated in any order by several processes, and finished one after the other.

    Attributes:
        corpus: its name, for the manifest.
        symbols: the input symbols, in the order of their indices.
        labels: the labels, in the order of their indices.
        parameters: all that determines the data, the seed included, as JSON gives it back.
    """

    corpus: str
    symbols: Sequence[str]
    labels: Sequence[str]
    parameters: Mapping[str, Any]

    def num_parts(self, split: str) -> int:
        """The number of parts of a split, at least one."""

    def simulate(self, split: str, number: int) -> Any:
        """Makes what of a part does not depend on those before it. Draws from :func:`random_numbers` alone."""

    def finish(self, simulated: Any, carry: Any) -> tuple[Part, Any]:
        """Makes a part of what ``simulate`` made.

        Args:
            simulated: result of ``simulate``.
            carry: what the part before passes on; None for the first part of a split.

        Returns:
            The part, and what it passes on.
        """


def random_numbers(seed: int, split: str, number: int) -> np.random.Generator:
    """Random numbers that belong to one part of one split."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(SPLITS.index(split), number)))


def count_parts(generator: Generator) -> int:
    """The number of parts of all splits, each of which calls ``on_progress`` once."""
    return sum(generator.num_parts(split) for split in SPLITS)


def generate(
    generator: Generator,
    folder: str | Path,
    *,
    workers: int | None = None,
    on_progress: Callable[[str, int], None] = lambda split, parts: None,
) -> LabelledManifest:
    """Writes ``input0`` and ``label``, each with dict.txt and a .bin and .idx for each split, and last manifest.json.

    Memory does not grow with the data. The data does not depend on the number of workers.

    Args:
        generator: makes the data.
        folder: an existing folder to write to, such as :func:`~fairseq_expire.files.new_folder` makes.
        workers: number of processes; None for one a core, but at most ``PROCESSES``.
        on_progress: called with the name of the split and 1 after every part.

    Raises:
        ValueError: a symbol cannot stand in a dictionary, or a part does not fit the generator's symbols and labels.
        OSError: a file cannot be written; names it.
        RuntimeError: a worker was killed.
    """
    folder = Path(folder)
    streams = (_Stream(folder / INPUTS, generator.symbols), _Stream(folder / LABELS, generator.labels))
    inputs, labels = streams
    for stream in streams:
        stream.folder.mkdir()
    splits = {}
    for split in SPLITS:
        with ExitStack() as stack:
            writers = [stack.enter_context(open_split(stream.folder / split, stream.dtype)) for stream in streams]
            counted = 0
            for ids in stack.enter_context(_parts(generator, streams, split, workers)):
                for writer, of_stream in zip(writers, ids):
                    writer.add(of_stream, np.array([len(of_stream)]))
                counted += int(np.count_nonzero(ids[1] != labels.pad))
                if split == "train":
                    for stream, of_stream in zip(streams, ids):
                        stream.count(of_stream)
                on_progress(split, 1)
        input_writer, label_writer = writers
        splits[split] = LabelledCounts(
            tokens=input_writer.tokens,
            items=input_writer.items,
            labels=counted,
            input_bin_crc32=input_writer.bin_crc32,
            input_idx_crc32=file_crc32(f"{inputs.folder / split}.idx"),
            label_bin_crc32=label_writer.bin_crc32,
            label_idx_crc32=file_crc32(f"{labels.folder / split}.idx"),
        )
    for stream in streams:
        stream.save()
    manifest = LabelledManifest(
        version=__version__,
        numpy=np.__version__,
        corpus=generator.corpus,
        parameters=dict(generator.parameters),
        symbols=inputs.size,
        labels=labels.size,
        input_dictionary_sha256=file_sha256(inputs.dictionary_path),
        label_dictionary_sha256=file_sha256(labels.dictionary_path),
        splits=splits,
    )
    write_manifest(folder, manifest)
    return manifest


def verify_generated(
    make_generator: Callable[[LabelledManifest], Generator],
    folder: str | Path,
    *,
    workers: int | None = None,
    on_progress: Callable[[str, int], None] = lambda split, parts: None,
) -> Iterator[str]:
    """Compares the files with the manifest, makes the data again from its parameters, and compares that with the files.

    Args:
        make_generator: called with the manifest; raises ValueError if it is of another corpus.
        folder: of the data.
        workers: as in :func:`generate`.
        on_progress: as in :func:`generate`.

    Yields:
        A line for each split that is correct.

    Raises:
        ValueError: something differs; names the file.
    """
    manifest, folder = _manifest(folder), Path(folder)
    generator = make_generator(manifest)
    streams = (_Stream(folder / INPUTS, generator.symbols), _Stream(folder / LABELS, generator.labels))
    _check_dictionaries(manifest, folder)
    for split, counts in manifest.splits.items():
        _check_split_files(folder, split, counts)
        with ExitStack() as stack:
            files = [stack.enter_context(open(f"{stream.folder / split}.bin", "rb")) for stream in streams]
            tokens, sizes = 0, []
            for part in stack.enter_context(_parts(generator, streams, split, workers)):
                for stream, file, made in zip(streams, files, part):
                    stored = np.fromfile(file, dtype=stream.dtype, count=len(made))
                    if not np.array_equal(stored, made):
                        place = tokens + _first_difference(stored, made)
                        raise ValueError(
                            f"{file.name}: differs at position {place} from what its parameters give with version "
                            f"{__version__} and numpy {np.__version__} (it was made with {manifest.version} and numpy "
                            f"{manifest.numpy}); make the data again"
                        )
                tokens += len(part[0])
                sizes.append(len(part[0]))
                on_progress(split, 1)
            for stream, file in zip(streams, files):
                if file.read(1):
                    raise ValueError(f"{file.name}: longer than what its parameters give; make the data again")
                _check_items(stream, split, sizes)
        size = f"{counts.tokens} tokens, {counts.labels} labels"
        yield f"{split}: {size}: the files are as written, and the data made again is the same"


def restore_generated(folder: str | Path, *, split: str, labels: bool = False) -> Iterator[bytes]:
    """Yields the symbols of a split, or its labels, some at a time: a line each, ``<pad>`` where no label counts.

    Raises:
        ValueError: the folder has no manifest, or no such split; files do not fit together.
    """
    manifest, folder = _manifest(folder), Path(folder)
    counts = manifest.splits.get(split)
    if counts is None:
        raise ValueError(f"{folder}: no split {split}; it has {', '.join(manifest.splits)}")
    _check_dictionaries(manifest, folder)
    stream = folder / (LABELS if labels else INPUTS)
    dictionary = Dictionary.load(str(stream / "dict.txt"))
    dtype = best_fitting_int_dtype(len(dictionary))
    lines = np.array([symbol.encode() + b"\n" for symbol in dictionary.symbols], dtype=object)
    sizes = {"tokens": counts.tokens, "items": counts.items, "symbols": len(dictionary)}
    return (b"".join(lines[ids]) for ids, _ in read_split(stream / split, dtype, **sizes))


class _Stream:
    """The inputs or the labels: their folder, their dictionary, and fairseq's ids of a generator's indices."""

    def __init__(self, folder: Path, symbols: Sequence[str]):
        self.folder, self.dictionary_path = folder, folder / "dict.txt"
        dictionary = Dictionary()
        self.pad, self.num_special, self.num_symbols = dictionary.pad(), len(dictionary), len(symbols)
        for symbol in symbols:
            if not symbol or any(character.isspace() for character in symbol) or symbol in dictionary.indices:
                raise ValueError(
                    f"symbol {symbol!r}: expected symbols without white space, each once, and none of fairseq's own"
                )
            dictionary.add_symbol(symbol, 0)
        self.size = len(dictionary)
        self.dtype = best_fitting_int_dtype(self.size)
        self._dictionary = dictionary

    def ids(self, indices: np.ndarray) -> np.ndarray:
        """Ids [length] of indices [length]; -1 becomes ``<pad>``. Raises ValueError for an index out of range."""
        if indices.min() < -1 or indices.max() >= self.num_symbols:
            raise ValueError(
                f"{self.folder.name}: indices from {indices.min()} to {indices.max()}, expected -1 to "
                f"{self.num_symbols - 1}"
            )
        table = np.arange(self.num_special - 1, self.size, dtype=self.dtype)
        table[0] = self.pad
        return table[indices.astype(np.int64) + 1]

    def count(self, ids: np.ndarray) -> None:
        """Adds to the counts that the dictionary keeps."""
        counts = np.bincount(ids, minlength=self.size)
        for index in np.flatnonzero(counts[self.num_special :]) + self.num_special:
            self._dictionary.count[index] += int(counts[index])

    def save(self) -> None:
        """Writes dict.txt, in the order of the symbols."""
        with naming_file_in_errors(self.dictionary_path):
            self._dictionary.save(str(self.dictionary_path))


@contextmanager
def _parts(
    generator: Generator, streams: tuple[_Stream, _Stream], split: str, workers: int | None
) -> Iterator[Iterator[tuple[np.ndarray, np.ndarray]]]:
    """Inside the ``with``, an iterator over the ids of inputs and labels, both [length], of the parts of a split."""
    num_parts = generator.num_parts(split)
    if workers is None:
        workers = min(available_cores(), PROCESSES)
    workers = max(1, min(workers, num_parts))

    def simulate(number: int) -> Any:
        return generator.simulate(split, number)

    def finish(results: Iterator[Any]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        carry = None
        for number, result in enumerate(results):
            part, carry = generator.finish(result, carry)
            if len(part.symbols) != len(part.labels) or not len(part.symbols) or part.symbols.min() < 0:
                raise ValueError(
                    f"{generator.corpus}: part {number} of {split} has {len(part.symbols)} symbols and "
                    f"{len(part.labels)} labels; expected as many of both, and a symbol everywhere"
                )
            yield streams[0].ids(part.symbols), streams[1].ids(part.labels)

    with ordered_map(simulate, range(num_parts), workers=workers, in_processes=True) as results:
        yield finish(results)


def _manifest(folder: str | Path) -> LabelledManifest:
    manifest = read_labelled_manifest(folder)
    if manifest is None:
        raise ValueError(f"{folder}: no {FILE_NAME} there; give a folder that a script of data_prep wrote")
    return manifest


def _check_dictionaries(manifest: LabelledManifest, folder: Path) -> None:
    for stream, expected in ((INPUTS, manifest.input_dictionary_sha256), (LABELS, manifest.label_dictionary_sha256)):
        path = folder / stream / "dict.txt"
        if file_sha256(path) != expected:
            raise ValueError(f"{path}: not the file that {FILE_NAME} names; make the data again")


def _check_split_files(folder: Path, split: str, counts: LabelledCounts) -> None:
    """Compares the checksums of the files of both streams."""
    check_crc32(folder / INPUTS / f"{split}.bin", counts.input_bin_crc32)
    check_crc32(folder / INPUTS / f"{split}.idx", counts.input_idx_crc32)
    check_crc32(folder / LABELS / f"{split}.bin", counts.label_bin_crc32)
    check_crc32(folder / LABELS / f"{split}.idx", counts.label_idx_crc32)


def _check_items(stream: _Stream, split: str, sizes: Sequence[int]) -> None:
    """Raises ValueError unless the items of a split have these sizes."""
    prefix = stream.folder / split
    ends = np.concatenate(list(read_item_ends(prefix, stream.dtype, items=len(sizes))))
    if not np.array_equal(np.cumsum(sizes), ends):
        raise ValueError(f"{prefix}.idx: items end elsewhere than its parameters give; make the data again")


def _first_difference(stored: np.ndarray, made: np.ndarray) -> int:
    """The place where a file, which may end early, first differs."""
    differs = np.flatnonzero(stored != made[: len(stored)])
    return int(differs[0]) if len(differs) else len(stored)
