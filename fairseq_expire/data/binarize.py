"""Writing text as fairseq's memory-mapped data with its dictionary, and reading it back."""
import hashlib
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Mapping, Optional, Sequence, Union

import torch
from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import MMapIndexedDataset, MMapIndexedDatasetBuilder, best_fitting_int_dtype

from fairseq_expire import __version__
from fairseq_expire.data.levels import LEVELS, Level
from fairseq_expire.data.manifest import Manifest, SplitCounts, read_manifest, write_manifest
from fairseq_expire.data.sources import Piece

# Most bytes of text in one item of bytes or characters. Larger ones take more memory and time: caches are smaller.
CHUNK_BYTES = 1 << 22

# Called with what is being done ("vocabulary", or the name of a split) and the number of bytes just read for it.
OnProgress = Callable[[str, int], None]


def _no_progress(doing: str, num_bytes: int) -> None:
    pass


def binarize(
    *,
    splits: Mapping[str, Sequence[Piece]],
    level: str,
    folder: Union[str, Path],
    append_eos: bool = False,
    threshold: int = 0,
    dictionary_file: Optional[Union[str, Path]] = None,
    chunk_bytes: int = CHUNK_BYTES,
    origin: Optional[Mapping[str, Any]] = None,
    on_progress: OnProgress = _no_progress,
) -> Manifest:
    """Write dict.txt, a .bin and an .idx per split, and manifest.json.

    The dictionary is made of "train", unless one is given; symbols that it does not have become `<unk>`. Text is read
    twice, a chunk at a time: memory grows with the dictionary and the number of items only.

    Args:
        splits: the files, or parts of files, of each split; "train" among them where no dictionary is given.
        level: "bytes", "chars" or "words".
        folder: an existing folder, to write in.
        append_eos: end every file with `</s>`; in words every line ends so anyway.
        threshold: leave out symbols that "train" holds less often.
        dictionary_file: the dict.txt of other data of the same level (a trained model's), to be used as it is.
        chunk_bytes: most bytes of text in one item of bytes or characters; a larger file spans several items.
        origin: how the splits were chosen, for the manifest; anything JSON can hold.
        on_progress: called after every chunk.

    Raises:
        ValueError: there is no such level, or no "train"; a file is not UTF-8 (chars and words), or has become shorter;
            the dictionary is damaged or of another level.
    """
    if level not in LEVELS:
        raise ValueError(f"level is {level!r}, expected one of {', '.join(LEVELS)}")
    if dictionary_file is None and "train" not in splits:
        raise ValueError(f"splits are {', '.join(splits) or 'none'}, expected train among them: the dictionary is made of it")
    dictionary_path = Path(folder, "dict.txt")
    if dictionary_file is None:
        on_read = partial(on_progress, "vocabulary")
        _make_dictionary(LEVELS[level], splits["train"], threshold, chunk_bytes, on_read).save(str(dictionary_path))
    else:
        dictionary_path.write_bytes(Path(dictionary_file).read_bytes())
    dictionary = _load_dictionary(dictionary_path, dictionary_file or dictionary_path, level)

    written: Dict[str, SplitCounts] = {}
    for name, pieces in splits.items():
        builder = MMapIndexedDatasetBuilder(str(Path(folder, f"{name}.bin")), dtype=best_fitting_int_dtype(len(dictionary)))
        tokens = items = unknown = 0
        for item in LEVELS[level].items(
            pieces,
            dictionary=dictionary,
            append_eos=append_eos,
            chunk_bytes=chunk_bytes,
            on_read=partial(on_progress, name),
        ):
            builder.add_item(torch.from_numpy(item.ids))
            tokens, items, unknown = tokens + len(item.ids), items + 1, unknown + item.unknown
        builder.finalize(str(Path(folder, f"{name}.idx")))
        num_eos = sum(piece.ends_file for piece in pieces) if append_eos else 0
        written[name] = SplitCounts(
            tokens=tokens,
            items=items,
            unknown=unknown,
            source_bytes=sum(piece.num_bytes for piece in pieces),
            source_chars=tokens - num_eos if level == "chars" else None,
        )

    manifest = Manifest(
        version=__version__,
        level=level,
        options={"append_eos": append_eos, "threshold": threshold, "chunk_bytes": chunk_bytes, **(origin or {})},
        symbols=len(dictionary),
        dictionary_sha256=_sha256(dictionary_path),
        splits=written,
    )
    write_manifest(folder, manifest)
    return manifest


def restore(folder: Union[str, Path], *, split: str) -> Iterator[bytes]:
    """The text that `binarize` was given for a split, a part at a time.

    Bytes and characters come back exactly; words with one space between them and "\\n" after every line.

    Raises:
        ValueError: the folder has no manifest, or no such split; symbols were not in the dictionary and are lost;
            dict.txt is not the one the data was written with.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise ValueError(f"{folder}: no manifest.json there; give a folder that data_prep/text.py wrote")
    counts = manifest.splits.get(split)
    if counts is None:
        raise ValueError(f"{folder}: no split {split}; it has {', '.join(manifest.splits)}")
    if counts.unknown:
        raise ValueError(
            f"{folder}: {counts.unknown} of the {counts.tokens} symbols of {split} are <unk>, because train has none of "
            "their kind (or too few of them for --threshold); their text is not kept"
        )
    dictionary_path = Path(folder, "dict.txt")
    if _sha256(dictionary_path) != manifest.dictionary_sha256:
        raise ValueError(f"{dictionary_path}: not the file the data was written with; restore it, or make the data again")
    dictionary = Dictionary.load(str(dictionary_path))
    dataset = MMapIndexedDataset(str(Path(folder, split)))
    return LEVELS[manifest.level].restore((dataset[i].numpy() for i in range(len(dataset))), dictionary=dictionary)


def _make_dictionary(
    level: Level, pieces: Sequence[Piece], threshold: int, chunk_bytes: int, on_read: Callable[[int], None]
) -> Dictionary:
    dictionary = Dictionary()
    for symbol, count in level.count(pieces, chunk_bytes=chunk_bytes, on_read=on_read).items():
        dictionary.add_symbol(symbol, count)
    dictionary.finalize(threshold=threshold, padding_factor=level.padding_factor)
    return dictionary


def _load_dictionary(path: Path, given: Union[str, Path], level: str) -> Dictionary:
    """Raises ValueError, naming the file that was given, if it is no dictionary or not one of this level."""
    try:
        dictionary = Dictionary.load(str(path))
        LEVELS[level].check(dictionary)
    except (ValueError, RuntimeError, KeyError) as error:
        raise ValueError(f"{given}: not a dictionary of {level} ({error}); give the dict.txt of data of this level") from None
    return dictionary


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
