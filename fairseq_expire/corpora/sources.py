"""Sources of a split: finding files, and cutting their concatenation into shares."""

import mmap
import os
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from fractions import Fraction
from itertools import accumulate
from pathlib import Path

from fairseq_expire.corpora.compressed import has_content, names_of
from fairseq_expire.tokenizers.chunks import FileSlice

SPLITS = ("train", "valid", "test")

# Line ends as in text mode: a "\r" right before a "\n" belongs to it.
LINE_END = re.compile(rb"\r\n|\r|\n")


def find_files(
    paths: Sequence[str], *, include: Sequence[str] = (), exclude: Sequence[str] = (), text: bool = False
) -> list[FileSlice]:
    """Finds the files given, and the files below the folders given: in the order given, the files of a folder sorted.

    In folders, hidden files and folders are skipped, and so are empty files. Sorting compares path components by code
    point, so that it does not depend on the locale. Compressed files are found as they are, see
    :func:`~fairseq_expire.corpora.compressed.unpack`; their names are known with and without ``.gz``, ``.bz2`` or
    ``.xz``.

    Args:
        paths: files, and folders to search recursively.
        include: patterns (``*.txt``). The name of a file in a folder must match one of them; none means all files.
        exclude: patterns that no component of a path below a given folder may match.
        text: refuse files that do not begin like text.

    Raises:
        ValueError: a path is missing or neither file nor folder; a file that was given is empty; a folder has no
            matching file with text in it, or a file beside its compressed form; a file is an archive, or damaged.
        OSError: a file or folder cannot be read; names it.
    """
    slices = []
    for path in map(Path, paths):
        if path.is_dir():
            matching = sorted(
                _walk(path, include=include, exclude=exclude), key=lambda file: file.relative_to(path).parts
            )
            _check_no_twins(matching)
            found = [whole for whole in map(_whole_file, matching) if _is_used(whole, text)]
            if not found:
                what = f"its {len(matching)} matching files are all empty" if matching else "no file in it matches"
                raise ValueError(f"{path}: {what} (looked for {_wanted(include, exclude)}); name a folder with text")
            slices += found
        else:
            whole = _whole_file(path)
            if not _is_used(whole, text):
                raise ValueError(f"{path}: the file is empty; leave it out")
            slices.append(whole)
    return slices


def _check_no_twins(paths: Sequence[Path]) -> None:
    """Raises ValueError if a file and its compressed form are both there, since their text would be read twice."""
    there = set(paths)
    for path in paths:
        for name in names_of(path.name)[1:]:
            if path.with_name(name) in there:
                raise ValueError(
                    f"{path}: {name} beside it would be read, too, and is the same text by its name; leave one of them "
                    f"out (data_prep/text.py has --exclude '*{path.suffix}')"
                )


def _whole_file(path: Path) -> FileSlice:
    if not path.exists():
        raise ValueError(f"{path}: there is no such file or folder; look at the spelling and the current folder")
    # A pipe cannot be read twice: once for the vocabulary, once to write.
    if not path.is_file():
        raise ValueError(f"{path}: expected a regular file or a folder; write the text to a file first")
    return FileSlice(path, 0, path.stat().st_size)


def _is_used(whole: FileSlice, text: bool) -> bool:
    return whole.num_bytes > 0 and has_content(whole.path, text=text)


def _wanted(include: Sequence[str], exclude: Sequence[str]) -> str:
    """The patterns as they were given."""
    options = [f"--include {pattern}" for pattern in include] + [f"--exclude {pattern}" for pattern in exclude]
    return " ".join(options) or "any name"


def _walk(folder: Path, *, include: Sequence[str], exclude: Sequence[str]) -> Iterator[Path]:
    def matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)

    def fail(error: OSError) -> None:
        raise error

    # Without `onerror`, a folder that may not be read would be left out in silence.
    for place, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".") and not matches([name], exclude)]
        for name in folders:
            # Following links could go round in circles; leaving them out would lose text in silence.
            if os.path.islink(os.path.join(place, name)):
                raise ValueError(
                    f"{place}/{name}: a link to a folder; --exclude it, and give the folder itself if wanted"
                )
        for name in names:
            known = names_of(name)
            if not name.startswith(".") and not matches(known, exclude) and (not include or matches(known, include)):
                yield Path(place, name)


def parse_shares(text: str) -> list[Fraction]:
    """Parses shares such as "0.9,0.05,0.05", of train, valid and, if there are three, test. They are exact.

    Raises:
        ValueError: not two or three positive numbers that sum to 1 (to within 1e-6).
    """
    try:
        shares = [Fraction(part) for part in text.split(",")]
    except (ValueError, ZeroDivisionError):
        shares = []
    if len(shares) not in (2, 3) or min(shares) <= 0 or abs(sum(shares) - 1) > Fraction(1, 10**6):
        raise ValueError(
            f"--split {text}: expected two or three positive numbers with commas between them that sum to 1, "
            "the shares of train, valid and test, as in 0.9,0.05,0.05"
        )
    return shares


def cut(slices: Sequence[FileSlice], *, shares: Sequence[Fraction], level: str) -> dict[str, list[FileSlice]]:
    """Cuts the concatenation of whole files into consecutive splits.

    Each cut is at the byte that its share asks for, or else at the next place that the level allows: any byte for
    "bytes", the next line for "words", the next character for others. A file that lies across a cut is divided.

    Args:
        slices: whole files, as :func:`find_files` gives them.
        shares: one for each split, in the order of ``SPLITS``. The last split gets what rounding leaves over.
        level: name of the tokenizer.

    Returns:
        The slices of each split.

    Raises:
        ValueError: a split would be empty.
    """
    total = sum(whole.num_bytes for whole in slices)
    # The last one gets all, even if the shares sum to 1 only to within the tolerance.
    wanted = [int(total * share) for share in accumulate(shares[:-1])] + [total]
    splits, rest = {}, deque(slices)
    done = 0
    for name, target in zip(SPLITS, wanted):
        part = []
        while rest and done < target:
            first = rest.popleft()
            middle = _next_boundary(first, first.start + target - done, level)
            part.append(replace(first, stop=middle, ends_file=first.ends_file and middle == first.stop))
            if middle < first.stop:
                rest.appendleft(replace(first, start=middle))
            done += part[-1].num_bytes
        if not part:
            share = float(shares[SPLITS.index(name)])
            raise ValueError(
                f"--split: {name} would be empty: its share {share:g} of {total} bytes has no room for one of the "
                f"{level}; give it a larger share, or more text"
            )
        splits[name] = part
    return splits


def _next_boundary(whole: FileSlice, offset: int, level: str) -> int:
    """The first offset in a slice, not before ``offset`` (which is after its start), where the level allows a cut."""
    if offset >= whole.stop or level == "bytes":
        return min(offset, whole.stop)
    with open(whole.path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if level == "words":
            # From one byte before: a line may end right at `offset`.
            match = LINE_END.search(content, offset - 1)
            return match.end() if match else whole.stop
        while offset < whole.stop and 0x80 <= content[offset] < 0xC0:
            offset += 1
    return offset
