"""Writing text as fairseq's memory-mapped data with its dictionary."""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fairseq_expire import requires_fairseq  # noqa: F401

# isort: split
from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import best_fitting_int_dtype

from fairseq_expire import __version__
from fairseq_expire.corpora import journal
from fairseq_expire.corpora.journal import Journal
from fairseq_expire.corpora.sources import FileSlice
from fairseq_expire.corpora.split_writer import SIZES, SplitWriter, Written
from fairseq_expire.corpora.unpacked import UNPACKED
from fairseq_expire.corpora.verify import TextHash, texts
from fairseq_expire.corpora.workers import PROCESSES, available_cores, ordered_map
from fairseq_expire.files import file_sha256, naming, write_atomically
from fairseq_expire.tokenizers.base import Tokenizer
from fairseq_expire.tokenizers.dictionary import load_dictionary
from fairseq_expire.tokenizers.manifest import Manifest, SplitCounts, write_manifest
from fairseq_expire.tokenizers.registry import LEVELS
from fairseq_expire.tokenizers.units import UNIT_BYTES, Unit, split_into_units

# Called with what is being done ("vocabulary", or the name of a split) and the number of bytes of text just read for it.
OnProgress = Callable[[str, int], None]


def _no_progress(doing: str, num_bytes: int) -> None:
    pass


@dataclass(frozen=True)
class Job:
    """What to make of which text.

    `splits` are the files, or parts of files, of each split; "train" among them where no dictionary is given. With
    `append_eos` every file ends in `</s>`; in words every line ends so anyway. `threshold` leaves out symbols that train
    holds less often. `dictionary_file` is the dict.txt of other data of the same level (a trained model's), to be used as
    it is. An item is a unit of text, a line (words), or with `item_per_file` a file. `source` goes to the manifest, and so
    do `words`, the number of words in each split if it is known.
    """

    splits: Mapping[str, Sequence[FileSlice]]
    level: Tokenizer
    append_eos: bool = False
    threshold: int = 0
    dictionary_file: Path | None = None
    item_per_file: bool = False
    unit_bytes: int = UNIT_BYTES
    source: Mapping[str, Any] = field(default_factory=dict)
    words: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self):
        if self.dictionary_file is None and "train" not in self.splits:
            raise ValueError(
                f"splits are {', '.join(self.splits) or 'none'}, expected train among them: the dictionary is made of it"
            )

    @property
    def level_name(self) -> str:
        return next(name for name, kind in LEVELS.items() if isinstance(self.level, kind))

    def plan(self) -> str:
        """The same for two jobs only if the data they make is the same: a hash of all that it depends on. Files count as
        the same if their path, size and time of change are."""
        stats = {piece.name: piece.name.stat() for pieces in self.splits.values() for piece in pieces}
        files = [(str(path.resolve()), stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()]
        pieces = {name: [(str(p.name), p.start, p.stop) for p in pieces] for name, pieces in self.splits.items()}
        dictionary = self.dictionary_file and file_sha256(self.dictionary_file)
        settings = [self.append_eos, self.threshold, self.item_per_file, self.unit_bytes, self.source, self.words]
        content = [__version__, self.level_name, self.level.options, files, pieces, dictionary, settings]
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()

    def units(self, split: str) -> list[Unit]:
        """The text of a split in the units that it is worked on in."""
        return list(split_into_units(self.splits[split], unit_bytes=self.unit_bytes, boundary=self.level.boundary))


def binarize(
    job: Job,
    folder: str | Path,
    *,
    workers: int | None = None,
    on_progress: OnProgress = _no_progress,
    save_seconds: float = journal.SAVE_SECONDS,
) -> Manifest:
    """Write dict.txt, a .bin and an .idx per split, and manifest.json; with subwords also their model.

    Text is read twice, a unit at a time: memory grows with the dictionary only. What an earlier call with the same job
    left unfinished in the folder is gone on with, and the result is the same, as it is for any number of workers.

    Args:
        job: what to make.
        folder: an existing folder, empty or with what an earlier call left unfinished.
        workers: threads or processes; None for as many as there are cores, but no more than PROCESSES processes.
        on_progress: called after every unit.
        save_seconds: how often to record how far it is.

    Raises:
        ValueError: a file is not UTF-8 (any level but bytes), or has become shorter; the dictionary is damaged or of
            another level.
        OSError: a file cannot be read or written; names it.
        RuntimeError: there is something else in the folder, or a worker was killed.
    """
    if workers is None:
        workers = min(available_cores(), PROCESSES) if job.level.in_processes else available_cores()
    return _Run(job, Path(folder), workers, on_progress, save_seconds).make()


class _Run:
    """One call of `binarize`. The journal's state has one key for each thing that is done or under way:

    - "vocabulary": {"units": how many are counted, "counts": of symbols}, or "done" once dict.txt is complete;
    - "splits": {name: the manifest's entry} for those that are complete, and the writer's record for the one under way.
    """

    def __init__(self, job: Job, folder: Path, workers: int, on_progress: OnProgress, save_seconds: float):
        self.job, self.folder, self.workers, self.on_progress = job, folder, workers, on_progress
        self.level = job.level
        self.journal = Journal(folder, plan=job.plan(), save_seconds=save_seconds)
        if self.journal.state is None:
            _empty(folder)
            self.journal.save({"vocabulary": {"units": 0, "counts": {}}, "splits": {}})
        self.state = self.journal.state

    def make(self) -> Manifest:
        dictionary_path = self.folder / "dict.txt"
        if self.state["vocabulary"] != "done":
            self._make_vocabulary(dictionary_path)
        self.level.load(self.folder)
        dictionary = load_dictionary(dictionary_path, self.level, given=self.job.dictionary_file)
        for split in self.job.splits:
            if "text_sha256" not in self.state["splits"].get(split, {}):
                self.state["splits"][split] = asdict(self._write(split, dictionary))
                self.journal.save(self.state)
        for path in self.folder.glob("*" + SIZES):
            path.unlink()
        manifest = Manifest(
            version=__version__,
            level=self.job.level_name,
            options=self.level.options,
            source={**self.job.source, "threshold": self.job.threshold},
            append_eos=self.job.append_eos,
            symbols=len(dictionary),
            dictionary_sha256=file_sha256(dictionary_path),
            splits={split: SplitCounts(**self.state["splits"][split]) for split in self.job.splits},
        )
        write_manifest(self.folder, manifest)
        return manifest

    def _make_vocabulary(self, path: Path) -> None:
        if self.job.dictionary_file is not None:
            self.level.adopt(self.job.dictionary_file.parent, self.folder)
            write_atomically(path, self.job.dictionary_file.read_bytes())
        else:
            units = self.job.units("train")
            self.level.learn(units, self.folder)
            self.level.load(self.folder)
            dictionary = self._count(self.level.counted(units))
            with naming(path):
                dictionary.save(str(path))
        self.state["vocabulary"] = "done"
        self.journal.save(self.state)

    def _count(self, units: Sequence[Unit]) -> Dictionary:
        done = self.state["vocabulary"]
        counts = Counter(done["counts"])
        rest = units[done["units"] :]
        self._report("vocabulary", units[: done["units"]])
        with ordered_map(self.level.count, rest, **self._how(rest)) as results:
            for number, (unit, result) in enumerate(zip(rest, results), start=done["units"] + 1):
                counts.update(result)
                self._report("vocabulary", [unit])
                if self.journal.due():
                    self.state["vocabulary"] = {"units": number, "counts": counts}
                    self.journal.save(self.state)
        dictionary = Dictionary()
        for symbol, count in counts.items():
            dictionary.add_symbol(symbol, count)
        for symbol in self.level.more_symbols():
            dictionary.add_symbol(symbol, 0)
        dictionary.finalize(threshold=self.job.threshold, padding_factor=self.level.padding_factor)
        return dictionary

    def _write(self, split: str, dictionary: Dictionary) -> SplitCounts:
        units = self.job.units(split)
        dtype = best_fitting_int_dtype(len(dictionary))
        encode = self.level.encoder(
            dictionary, dtype=dtype, append_eos=self.job.append_eos, item_per_file=self.job.item_per_file
        )
        writer = SplitWriter(self.folder, split, dtype=dtype, written=Written(**self.state["splits"].get(split, {})))
        written = writer.written
        text_hash = TextHash(self.level)
        # A hash cannot be recorded half made, so what an earlier run wrote is read once more.
        with open(writer.sizes_path, "rb") as sizes:
            prefix = self.folder / split
            for text in texts(prefix, sizes, self.level, dictionary, dtype=dtype, tokens=written.tokens):
                text_hash.add(text)
        self._report(split, units[: written.units])
        rest = units[written.units :]
        with ordered_map(encode, rest, **self._how(rest)) as results:
            for unit, encoded in zip(rest, results):
                writer.add(encoded)
                text_hash.add(encoded.text)
                self._report(split, [unit])
                if self.journal.due():
                    self.state["splits"][split] = writer.save()
                    self.journal.save(self.state)
        idx_crc32 = writer.finish()
        self.state["splits"][split] = writer.save()
        self.journal.save(self.state)
        writer.close()
        return SplitCounts(
            tokens=written.tokens,
            items=written.items,
            unknown=written.unknown,
            source_bytes=sum(unit.num_bytes for unit in units),
            text_bytes=text_hash.num_bytes,
            text_chars=text_hash.num_chars,
            text_sha256=text_hash.hexdigest(),
            bin_crc32=written.bin_crc32,
            idx_crc32=idx_crc32,
            words=self.job.words.get(split),
        )

    def _how(self, units: Sequence[Unit]) -> dict[str, Any]:
        return {"workers": max(1, min(self.workers, len(units))), "in_processes": self.level.in_processes}

    def _report(self, doing: str, units: Sequence[Unit]) -> None:
        self.on_progress(doing, sum(unit.num_bytes for unit in units))


def check_unfinished(folder: Path) -> list[Path]:
    """Files that an unfinished run left in a folder, without the text that it unpacked. Raises RuntimeError if the folder is not
    such a run's."""
    paths = [path for path in folder.iterdir() if path.name != UNPACKED]
    # A run may have been killed in the middle of writing its first record.
    if paths and not any(path.name.startswith(journal.FILE_NAME) for path in paths):
        raise RuntimeError(f"{folder}: not empty, and no unfinished data; move it away, or choose another folder")
    return paths


def _empty(folder: Path) -> None:
    """Remove what an unfinished run of another job left."""
    for path in check_unfinished(folder):
        if path.name == journal.FILE_NAME:
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()
