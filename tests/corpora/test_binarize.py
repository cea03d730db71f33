"""Binarizing: every text comes back, words are those of fairseq-preprocess, and the manifest describes the data."""

import hashlib
import io
import re
from collections import Counter

import numpy as np
import pytest
from fairseq import options
from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import MMapIndexedDataset
from fairseq_cli import preprocess

from fairseq_expire.corpora.binarize import Job, binarize
from fairseq_expire.corpora.sources import cut, find_files, parse_shares
from fairseq_expire.corpora.split_files import open_split
from fairseq_expire.corpora.verify import restore, verify
from fairseq_expire.tokenizers.bound import make_tokenizer
from fairseq_expire.tokenizers.manifest import read_manifest

EOS, UNK = 2, 3

AWKWARD = {
    "crlf": "one\r\ntwo\r\rthree\n\r\n\n",
    "controls": "\0a\x01\x1cb\x1d\x85c\x7f\xa0d\xad\x0b\x0c",
    "separators": "a\u2028b\u2029c\u3000d\u2003\u200b\ufeff",
    "escapes": "\u2581 \u2581\u2581  U+2581 U+0020 \u0120",
    "astral": "\U0001f600\U0010ffff\ue000\u0378e\u0301\u0301o\u0308 \U0001f468\u200d\U0001f469",
    "specials": "<unk> <s> </s> <pad> a <unk>\nmadeupword0000 #fairseq:overwrite 7\n<unk>",
    "blank": "\n \n\t\n",
    "one": "x",
}


def make(folder, texts, **kwargs):
    """Binarizes texts, given as bytes or str, one file each; ``texts`` maps a split to a list of them."""
    splits = {}
    for split, contents in texts.items():
        for number, text in enumerate(contents):
            path = folder / "text" / split / f"{number:03}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
        splits[split] = find_files([folder / "text" / split])
    return write(folder, splits, **kwargs)


def write(folder, splits, level="bytes", options=None, workers=1, on_progress=lambda doing, num_bytes: None, **kwargs):
    """Makes data of slices, and verifies it."""
    (folder / "bin").mkdir(exist_ok=True)
    job = Job(splits=splits, tokenizer=make_tokenizer(level, options or {}), **kwargs)
    manifest = binarize(job, folder / "bin", workers=workers, on_progress=on_progress)
    assert len(list(verify(folder / "bin", on_progress=lambda split, num_bytes: None))) == len(splits)
    return folder / "bin", manifest


def items(folder, split):
    dataset = MMapIndexedDataset(str(folder / split))
    return [dataset[i].tolist() for i in range(len(dataset))]


def symbols(folder):
    return Dictionary.load(str(folder / "dict.txt")).symbols


@pytest.mark.parametrize("append_eos", [False, True])
@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 5, 1 << 20])
@pytest.mark.parametrize("level", ["bytes", "chars"])
def test_text_comes_back(tmp_path, level, chunk_bytes, append_eos):
    texts = {"train": list(AWKWARD.values()), "valid": [AWKWARD["one"], AWKWARD["crlf"]]}
    folder, manifest = make(tmp_path, texts, level=level, chunk_bytes=chunk_bytes, append_eos=append_eos)
    for split, parts in texts.items():
        assert b"".join(restore(folder, split=split)) == "".join(parts).encode()
        counts, ids = manifest.splits[split], items(folder, split)
        assert counts.source_bytes == len("".join(parts).encode())
        assert (counts.tokens, counts.items, counts.unknown) == (sum(map(len, ids)), len(ids), 0)
        num_eos = len(parts) if append_eos else 0
        assert (counts.text_bytes, counts.text_chars) == (counts.source_bytes, len("".join(parts)))
        assert counts.text_sha256 == hashlib.sha256("".join(parts).encode()).hexdigest()
        assert counts.tokens == (counts.text_chars if level == "chars" else counts.text_bytes) + num_eos
        assert sum(item.count(EOS) for item in ids) == sum(item[-1] == EOS for item in ids) == num_eos
        # Only a "\r\n", which is not divided, makes a chunk longer.
        assert max(map(len, ids)) <= chunk_bytes + (level == "chars") + append_eos


def test_all_bytes_come_back(tmp_path):
    data = bytes(range(256)) * 3
    folder, manifest = make(tmp_path, {"train": [data]}, level="bytes", chunk_bytes=100)
    assert b"".join(restore(folder, split="train")) == data
    assert manifest.symbols == len(symbols(folder)) == 260
    assert [len(item) for item in items(folder, "train")] == [100] * 7 + [68]


@pytest.mark.parametrize("level, name_of_newline", [("bytes", "\u010a"), ("chars", "U+000A")])
def test_ids_are_those_of_the_dictionary(tmp_path, level, name_of_newline):
    folder, _ = make(tmp_path, {"train": ["b a\nb", "ccc"], "valid": ["a\nd"]}, level=level)
    # Ordered by count, and symbols of the same count by code point.
    assert symbols(folder)[4:] == ["c", "b"] + sorted([name_of_newline, "a", "\u2581"])
    assert (folder / "dict.txt").read_text().splitlines()[:2] == ["c 3", "b 2"]
    index = Dictionary.load(str(folder / "dict.txt")).index
    assert items(folder, "train") == [[index(s) for s in ["b", "\u2581", "a", name_of_newline, "b"]], [index("c")] * 3]
    assert items(folder, "valid") == [[index("a"), index(name_of_newline), UNK]]


@pytest.mark.parametrize("level", ["bytes", "chars", "words"])
def test_symbols_that_train_lacks_are_counted_and_not_restored(tmp_path, level):
    folder, manifest = make(tmp_path, {"train": ["a b"], "valid": ["a x\u20acy b"], "test": ["b a"]}, level=level)
    unknown = {"bytes": 5, "chars": 3, "words": 1}[level]
    assert [manifest.splits[split].unknown for split in ("train", "valid", "test")] == [0, unknown, 0]
    assert sum(item.count(UNK) for item in items(folder, "valid")) == unknown
    with pytest.raises(
        ValueError, match=f"{unknown} of the {manifest.splits['valid'].tokens} symbols of valid are <unk>"
    ):
        restore(folder, split="valid")
    assert b"".join(restore(folder, split="test")).strip() == b"b a"


@pytest.mark.parametrize("level", ["bytes", "chars", "words"])
def test_splits_of_one_text_join_to_it(tmp_path, level):
    (tmp_path / "text").mkdir()
    text = "".join(f"{i % 7} \u20ac\U0001f600 {'x' * (i % 13)}\n" for i in range(200))
    for name in "ab":
        (tmp_path / "text" / name).write_text(text)
    splits = cut(find_files([tmp_path / "text"]), shares=parse_shares("0.7,0.2,0.1"), level=level)
    folder, _ = write(tmp_path, splits, level=level, append_eos=level != "words", chunk_bytes=333)
    parts = [b"".join(restore(folder, split=split)) for split in splits]
    if level == "words":
        text = "".join(" ".join(line.split()) + "\n" for line in text.splitlines())
    else:
        # Only where a file ends, not where it is cut: train holds the end of one file, test that of the other.
        assert [sum(item.count(EOS) for item in items(folder, split)) for split in splits] == [1, 0, 1]
    assert b"".join(parts).decode() == text + text


def reference(folder, train, valid, threshold):
    """Binarizes two files with fairseq-preprocess and its defaults."""
    arguments = ["--only-source", "--trainpref", str(train), "--validpref", str(valid), "--destdir", str(folder)]
    parser = options.get_preprocessing_parser()
    preprocess.main(parser.parse_args(arguments + ["--thresholdsrc", str(threshold)]))


def assert_identical(folder, train, valid, threshold=0, chunk_bytes=1 << 20):
    """Compares the data with that of fairseq-preprocess, for which the word ``<pad>`` is replaced by ``<unk>``."""
    (folder / "given").mkdir()
    for name, text in {"train": train, "valid": valid}.items():
        (folder / name).write_bytes(text.encode())
        (folder / "given" / name).write_bytes(re.sub(r"(?<!\S)<pad>(?!\S)", "<unk>", text).encode())
    reference(folder / "reference", folder / "given" / "train", folder / "given" / "valid", threshold)
    splits = {split: find_files([folder / split]) for split in ("train", "valid")}
    ours, manifest = write(folder, splits, level="words", threshold=threshold, chunk_bytes=chunk_bytes)
    for name in ("dict.txt", "train.bin", "train.idx", "valid.bin", "valid.idx"):
        assert (ours / name).read_bytes() == (folder / "reference" / name).read_bytes(), name
    return ours, manifest


WHOLE = "\n".join(AWKWARD.values())


@pytest.mark.parametrize("chunk_bytes", [1, 7, 1 << 20])
@pytest.mark.parametrize("text", [*AWKWARD.values(), WHOLE, WHOLE + "\r"], ids=[*AWKWARD, "whole", "whole_cr"])
def test_words_are_what_fairseq_makes(tmp_path, text, chunk_bytes):
    folder, manifest = assert_identical(tmp_path, train=text, valid="one x\u2028 new\r<unk> a", chunk_bytes=chunk_bytes)
    expected = [" ".join(line.split()) for line in io.StringIO(text, newline=None)]
    pads = " ".join(expected).split().count("<pad>")
    assert manifest.splits["train"].unknown == pads
    if pads:
        with pytest.raises(
            ValueError, match=f"{pads} of the .* symbols of train are <unk>, .* or because they are the word <pad>"
        ):
            restore(folder, split="train")
    else:
        assert b"".join(restore(folder, split="train")).decode() == "".join(line + "\n" for line in expected)
    assert manifest.splits["train"].items == len(expected)
    known = {word for line in expected for word in line.split()} | {"<unk>"}
    assert manifest.splits["valid"].unknown == sum(word not in known for word in ["one", "x", "new", "<unk>", "a"])


@pytest.mark.parametrize("threshold", [0, 1, 2, 3, 100])
def test_thresholds_are_those_of_fairseq(tmp_path, threshold):
    text = "a b c a b a d\ne <unk> d <unk> <unk>\n"
    _, manifest = assert_identical(tmp_path, train=text, valid=text, threshold=threshold)
    counts = Counter(text.replace("<unk>", "").split())
    dropped = sum(count for count in counts.values() if count < threshold)
    assert manifest.splits["train"].unknown == manifest.splits["valid"].unknown == dropped


def test_a_large_vocabulary_takes_wider_ids(tmp_path):
    # Few lines, since fairseq is slow with each.
    text = "\n".join(" ".join(f"w{i}" for i in range(start, start + 2_000)) for start in range(0, 66_000, 2_000))
    folder, _ = assert_identical(tmp_path, train=text, valid="w1 w2\n")
    assert MMapIndexedDataset(str(folder / "train"))._index.dtype == np.uint32


def test_the_manifest_describes_the_data(tmp_path):
    texts = {"train": ["a\n", "b\n"], "test": ["c c\n"]}
    folder, manifest = make(tmp_path, texts, level="words", threshold=1, source={"split": None, "include": ["*"]})
    assert read_manifest(folder) == manifest
    assert (manifest.level, manifest.options, manifest.append_eos) == ("words", {}, False)
    assert manifest.source == {"threshold": 1, "split": None, "include": ["*"]}
    assert manifest.dictionary_sha256 == hashlib.sha256((folder / "dict.txt").read_bytes()).hexdigest()
    assert manifest.symbols == len(symbols(folder)) == 8
    assert list(manifest.splits) == ["train", "test"]


def test_progress_sums_to_the_size_of_the_text(tmp_path):
    read = Counter()

    def count(doing, num_bytes):
        read[doing] += num_bytes

    make(tmp_path, {"train": ["abc", "de"], "valid": ["f"]}, level="chars", chunk_bytes=2, on_progress=count)
    assert read == {"vocabulary": 5, "train": 5, "valid": 1}


def test_data_that_cannot_be_restored(tmp_path):
    with pytest.raises(ValueError, match=r"no manifest.json there"):
        restore(tmp_path, split="train")
    folder, _ = make(tmp_path, {"train": ["ab"]}, level="bytes")
    with pytest.raises(ValueError, match="no split valid; it has train"):
        restore(folder, split="valid")
    (folder / "dict.txt").write_text("b 1\na 1\n")
    with pytest.raises(ValueError, match=r"dict.txt: not the file that manifest.json names"):
        restore(folder, split="train")


def test_arguments_are_checked(tmp_path):
    with pytest.raises(ValueError, match="level is 'letters', expected one of bytes, chars, words, subword"):
        make(tmp_path, {"train": ["a"]}, level="letters")
    with pytest.raises(ValueError, match="splits are valid, expected train among them"):
        make(tmp_path / "other", {"valid": ["a"]}, level="bytes")


def test_an_item_that_is_too_long_for_the_format(tmp_path):
    with open_split(tmp_path / "train", np.uint16) as writer:
        writer.open_tokens = 2**31
        with pytest.raises(ValueError, match="an item of 2147483649 tokens"):
            writer.add(np.array([4]), np.array([1]))
        writer.open_tokens = 0
