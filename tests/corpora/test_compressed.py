"""Compressed files: their content is read in full or refused, and archives and binary files are recognised."""

import bz2
import gzip
import io
import lzma
import random
import sys
import tarfile
import tracemalloc
import zipfile

import pytest

from fairseq_expire.corpora import compressed
from fairseq_expire.corpora.compressed import (
    BLOCK,
    UNPACKED,
    compression,
    content_of,
    has_content,
    remove_unpacked,
    unpack,
)
from fairseq_expire.corpora.sources import find_files

COMPRESS = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress}
SUFFIX = {"gzip": ".gz", "bzip2": ".bz2", "xz": ".xz"}
TEXT = "".join(f"line {number} \u20ac {random.Random(number).random()}\n" for number in range(3000)).encode()


def written(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("kind", COMPRESS)
@pytest.mark.parametrize("text", [b"", b"x", TEXT, b"\0" * 3_000_000], ids=["empty", "one", "text", "zeros"])
def test_content_comes_back_in_bounded_blocks(tmp_path, kind, text):
    path = written(tmp_path / "name says nothing", COMPRESS[kind](text))
    assert compression(path) == kind
    for block in (7_001, BLOCK):
        blocks = list(content_of(path, block=block))
        assert b"".join(blocks) == text and max(map(len, blocks), default=0) <= block
    assert has_content(path, text=False) == bool(text)


@pytest.mark.parametrize("kind", COMPRESS)
def test_streams_that_follow_one_another(tmp_path, kind):
    """pigz, pbzip2 and appending make such files; tapes fill them up with zeros."""
    parts = [TEXT[:5], b"", TEXT[5:9], TEXT[9:]]
    content = b"".join(map(COMPRESS[kind], parts))
    for padding in (b"", bytes(512)):
        path = written(tmp_path / "a", content + padding)
        assert b"".join(content_of(path)) == b"".join(content_of(path, block=11)) == TEXT
        assert has_content(path, text=True)


@pytest.mark.parametrize("kind", COMPRESS)
def test_damage_is_never_mistaken_for_the_end(tmp_path, kind):
    whole = COMPRESS[kind](TEXT)
    random.seed(0)
    cut = [whole[:length] for length in sorted(random.sample(range(12, len(whole)), 25))] + [whole[:-1]]
    behind = [whole + b"garbage", whole + whole[: len(whole) // 2], whole + b"\0\0x"]
    place = len(whole) // 2
    flipped = [whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]]
    for content in [*cut, *behind, *flipped]:
        path = written(tmp_path / "bad", content)
        with pytest.raises(
            ValueError, match=rf"bad: {kind} data that is damaged or cut short \(.*\); get the file again"
        ) as caught:
            list(content_of(path))
        assert "\n" not in str(caught.value)


def tar():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("a.txt")
        info.size = len(TEXT)
        archive.addfile(info, io.BytesIO(TEXT))
    return buffer.getvalue()


def zipped():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.txt", TEXT)
    return buffer.getvalue()


ARCHIVES = {
    "zip": zipped(),
    "tar": tar(),
    "lzma": lzma.compress(TEXT, format=lzma.FORMAT_ALONE),
    "7z": b"7z\xbc\xaf\x27\x1c\0\4",
    "rar": b"Rar!\x1a\x07\1\0",
    "zstd": b"\x28\xb5\x2f\xfd\4",
    "lz4": b"\x04\x22\x4d\x18\x64",
    "lzip": b"LZIP\x01\x0c",
    "compress": b"\x1f\x9d\x90",
}


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("around", [None, *COMPRESS])
@pytest.mark.parametrize("kind", ARCHIVES)
def test_archives_are_refused(tmp_path, kind, around, text):
    content = ARCHIVES[kind] if around is None else COMPRESS[around](ARCHIVES[kind])
    path = written(tmp_path / "x.txt", content)
    what = f"{kind} data" if around is None else f"{around} data of {kind} data"
    with pytest.raises(ValueError, match=f"x.txt: {what}, not text; unpack it and give what is in it"):
        find_files([path], text=text)


@pytest.mark.parametrize("kind", COMPRESS)
def test_files_that_are_compressed_twice_are_refused(tmp_path, kind):
    for inner in COMPRESS:
        path = written(tmp_path / "x", COMPRESS[kind](COMPRESS[inner](TEXT)))
        with pytest.raises(ValueError, match=f"x: {kind} data of {inner} data, not text; unpack it"):
            has_content(path, text=False)


# Texts that begin almost like archives.
TEXTS = [
    b"PK\n",
    b"BZh9 is how bzip2 begins",
    b"7z",
    b"Rar!\n",
    b"LZIP and text",
    b"]\0\0",
    b"ustar " * 99,
    b"070701\n",
    b"\x1f\x8b",
    b"(\n",
]


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_not_mistaken_for_an_archive(tmp_path, text):
    path = written(tmp_path / "x", text)
    assert compression(path) is None and has_content(path, text=False)


@pytest.mark.parametrize("around", [bytes, *COMPRESS.values()])
def test_binary_files_are_refused_as_text(tmp_path, around):
    start = "\u20ac" * 30_000
    for content, words in {
        b"a\0b": "x: binary, or not UTF-8: it has a zero at byte 1; convert it, leave it out, or take bytes .*"
        "--exclude and --level bytes",
        "text".encode("utf-16"): "x: not UTF-8 at byte 0 .invalid start byte.; convert it, .*--level bytes",
        "text".encode("utf-16-le"): "x: binary, or not UTF-8: it has a zero at byte 1",
        b"abc\xe9": "x: not UTF-8 at byte 3 .unexpected end of data.",
        b"\x89PNG\r\n\x1a\n": "x: not UTF-8 at byte 0",
    }.items():
        path = written(tmp_path / "x", around(content))
        with pytest.raises(ValueError, match=words):
            has_content(path, text=True)
        assert has_content(path, text=False)
    # The part that is looked at ends in the middle of a character, in a file of two streams and of one.
    parts = [around(start[:number].encode()) for number in (20_000, 2_000)]
    assert around is bytes or has_content(written(tmp_path / "x", b"".join(parts)), text=True)
    assert has_content(written(tmp_path / "x", around(start.encode())), text=True)


@pytest.mark.parametrize("kind", COMPRESS)
def test_memory_does_not_grow_with_the_content(tmp_path, kind):
    with {"gzip": gzip, "bzip2": bz2, "xz": lzma}[kind].open(tmp_path / "a", "wb") as file:
        for _ in range(64):
            file.write(bytes(1 << 20))
    found = find_files([tmp_path / "a"])
    tracemalloc.start()
    [unpacked] = unpack({"train": found}, tmp_path)["train"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert unpacked.num_bytes == 64 << 20 and peak < 16 << 20


def test_each_file_is_unpacked_once(tmp_path, monkeypatch):
    (tmp_path / "text").mkdir()
    for name in "abc":
        written(tmp_path / "text" / name, gzip.compress(name.encode() * 1000))
    written(tmp_path / "text" / "plain", b"plain")
    found = {"train": find_files([tmp_path / "text"]), "valid": find_files([tmp_path / "text" / "a"])}
    unpacking, original = [], compressed.content_of
    monkeypatch.setattr(compressed, "content_of", lambda path: unpacking.append(path.name) or original(path))
    slices = unpack(found, tmp_path)
    assert unpacking == ["a", "b", "c"]
    assert [part.path.read_bytes() for part in slices["train"]] == [b"a" * 1000, b"b" * 1000, b"c" * 1000, b"plain"]
    assert [part.name.name for part in slices["train"]] == ["a", "b", "c", "plain"]
    assert slices["valid"] == slices["train"][:1]
    assert len(list((tmp_path / UNPACKED).iterdir())) == 3
    remove_unpacked(tmp_path)
    assert not (tmp_path / UNPACKED).exists()


def test_only_the_beginning_is_read(tmp_path, monkeypatch):
    path = written(tmp_path / "x", b"a" * 10_000_000)
    read = []
    original = compressed.content_of
    monkeypatch.setattr(
        compressed,
        "content_of",
        lambda path, block: (read.append(len(part)) or part for part in original(path, block=block)),
    )
    find_files([path], text=True)
    assert sum(read) < 200_000


def test_a_python_without_the_decompressor(tmp_path, monkeypatch):
    path = written(tmp_path / "x", lzma.compress(TEXT))
    monkeypatch.setitem(sys.modules, "lzma", None)
    with pytest.raises(
        ValueError, match=r"x: xz data, which this Python cannot read .*; unpack it and give what is in it"
    ):
        has_content(path, text=False)
