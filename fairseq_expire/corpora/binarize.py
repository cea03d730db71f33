"""Binarizing: text becomes fairseq's memory-mapped dataset, with a dictionary and a manifest."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from fairseq_expire import requires_fairseq  # noqa: F401

# isort: split
from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import best_fitting_int_dtype

from fairseq_expire import __version__
from fairseq_expire.corpora.split_files import open_split
from fairseq_expire.corpora.verify import TextHash
from fairseq_expire.corpora.workers import PROCESSES, available_cores, ordered_map
from fairseq_expire.files import file_crc32, file_sha256, naming_file_in_errors, write_atomically
from fairseq_expire.tokenizers.chunks import CHUNK_BYTES, Chunk, FileSlice, split_into_chunks
from fairseq_expire.tokenizers.manifest import Manifest, SplitCounts, write_manifest
from fairseq_expire.tokenizers.tokenizer import Tokenizer, load_dictionary

Result = TypeVar("Result")

# Called with the current step ("vocabulary", or the name of a split) and the number of bytes just read for it.
OnProgress = Callable[[str, int], None]


def _no_progress(doing: str, num_bytes: int) -> None:
    pass


@dataclass(frozen=True)
class Job:
    """The data to make, and the text to make it of.

    An item of the dataset is a chunk of text; with words a line, and with ``item_per_file`` a file.

    Args:
        splits: the slices of files of each split, with a train split unless ``dictionary_file`` is given.
        tokenizer: makes the symbols.
        append_eos: end every file with ``</s>``. With words every line ends in it anyway.
        threshold: leave out symbols that occur less often in train.
        dictionary_file: the dict.txt of other data, to use as it is; None to make one of the train split.
        item_per_file: make an item of each file.
        chunk_bytes: about how much text to encode at once.
        source: how the text was chosen, for the manifest.
        words: the number of words of each split, for the manifest, if it is known.

    Raises:
        ValueError: there is no train split to make a dictionary of.
    """

    splits: Mapping[str, Sequence[FileSlice]]
    tokenizer: Tokenizer
    append_eos: bool = False
    threshold: int = 0
    dictionary_file: Path | None = None
    item_per_file: bool = False
    chunk_bytes: int = CHUNK_BYTES
    source: Mapping[str, Any] = field(default_factory=dict)
    words: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self):
        if self.dictionary_file is None and "train" not in self.splits:
            raise ValueError(
                f"splits are {', '.join(self.splits) or 'none'}, expected train among them: "
                "the dictionary is made of it"
            )

    def chunks(self, split: str) -> list[Chunk]:
        """The text of a split, in chunks."""
        boundary = self.tokenizer.boundary
        return list(split_into_chunks(self.splits[split], chunk_bytes=self.chunk_bytes, boundary=boundary))


def binarize(
    job: Job, folder: str | Path, *, workers: int | None = None, on_progress: OnProgress = _no_progress
) -> Manifest:
    """Writes dict.txt, a .bin and an .idx for each split, and last manifest.json; for subwords also their model.

    Text is read twice, a chunk at a time, so that memory grows with the dictionary only. The data does not depend on
    the number of workers.

    Args:
        job: the data to make.
        folder: an existing folder to write to, such as :func:`~fairseq_expire.files.new_folder` makes.
        workers: number of threads or processes; None for one a core, but at most ``PROCESSES`` processes.
        on_progress: called after every chunk.

    Raises:
        ValueError: a file is not UTF-8 (unless symbols are bytes), or has become shorter; the dictionary is damaged or
            of another tokenizer.
        OSError: a file cannot be read or written; names it.
        RuntimeError: a worker was killed.
    """
    folder, tokenizer = Path(folder), job.tokenizer
    if workers is None:
        workers = min(available_cores(), PROCESSES) if tokenizer.uses_processes else available_cores()
    dictionary_path = folder / "dict.txt"
    _make_dictionary(job, dictionary_path, workers, on_progress)
    tokenizer.load(folder)
    dictionary = load_dictionary(dictionary_path, tokenizer, given=job.dictionary_file)
    dtype = best_fitting_int_dtype(len(dictionary))
    encode = tokenizer.make_encoder(dictionary, dtype=dtype, append_eos=job.append_eos, item_per_file=job.item_per_file)
    splits = {}
    for split in job.splits:
        chunks, text_hash, num_unknown = job.chunks(split), TextHash(tokenizer), 0
        with open_split(folder / split, dtype) as writer, _map(encode, chunks, tokenizer, workers) as results:
            for chunk, encoded in zip(chunks, results):
                writer.add(encoded.ids, encoded.item_ends)
                num_unknown += encoded.num_unknown
                text_hash.add(encoded.text)
                on_progress(split, chunk.num_bytes)
        splits[split] = SplitCounts(
            tokens=writer.tokens,
            items=writer.items,
            unknown=num_unknown,
            source_bytes=sum(chunk.num_bytes for chunk in chunks),
            text_bytes=text_hash.num_bytes,
            text_chars=text_hash.num_chars,
            text_sha256=text_hash.hexdigest(),
            bin_crc32=writer.bin_crc32,
            idx_crc32=file_crc32(f"{folder / split}.idx"),
            words=job.words.get(split),
        )
    manifest = Manifest(
        version=__version__,
        level=tokenizer.name,
        options=tokenizer.options,
        source={**job.source, "threshold": job.threshold},
        append_eos=job.append_eos,
        symbols=len(dictionary),
        dictionary_sha256=file_sha256(dictionary_path),
        splits=splits,
    )
    write_manifest(folder, manifest)
    return manifest


def _make_dictionary(job: Job, path: Path, workers: int, on_progress: OnProgress) -> None:
    """Writes dict.txt, and beside it what the tokenizer learns."""
    tokenizer = job.tokenizer
    if job.dictionary_file is not None:
        tokenizer.adopt(job.dictionary_file.parent, path.parent)
        write_atomically(path, job.dictionary_file.read_bytes())
        return
    chunks = job.chunks("train")
    tokenizer.learn(chunks, path.parent)
    tokenizer.load(path.parent)
    sample, counts = tokenizer.sample(chunks), Counter()
    with _map(tokenizer.count, sample, tokenizer, workers) as results:
        for chunk, result in zip(sample, results):
            counts.update(result)
            on_progress("vocabulary", chunk.num_bytes)
    dictionary = Dictionary()
    for symbol, count in counts.items():
        dictionary.add_symbol(symbol, count)
    for symbol in tokenizer.fixed_symbols():
        dictionary.add_symbol(symbol, 0)
    dictionary.finalize(threshold=job.threshold, padding_factor=tokenizer.padding_factor)
    with naming_file_in_errors(path):
        dictionary.save(str(path))


def _map(
    function: Callable[[Chunk], Result], chunks: Sequence[Chunk], tokenizer: Tokenizer, workers: int
) -> AbstractContextManager[Iterator[Result]]:
    """Calls a function on each chunk, by workers; see :func:`~fairseq_expire.corpora.workers.ordered_map`."""
    workers = max(1, min(workers, len(chunks)))
    return ordered_map(function, chunks, workers=workers, in_processes=tokenizer.uses_processes)
