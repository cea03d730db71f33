"""Data that is missing, damaged, or of another corpus."""

import json
import shutil

import numpy as np
import scripts
import torch
from fairseq.data.indexed_dataset import IndexedDatasetBuilder, MMapIndexedDatasetBuilder

from wrong_uses import Use


def removed(*names):
    return lambda folder: [(folder / "data" / name).unlink() for name in names]


def empty(folder):
    shutil.rmtree(folder / "data")
    (folder / "data").mkdir()


def cut_to(length, name):
    def damage(folder):
        path = folder / "data" / name
        path.write_bytes(path.read_bytes()[:length])

    return damage


def copied(name, onto):
    return lambda folder: shutil.copy(folder / "data" / name, folder / "data" / onto)


def dictionary(change, manifest=False):
    """Changes the lines of dict.txt; deletes the manifest, which would notice, unless asked not to."""

    def damage(folder):
        path = folder / "data" / "dict.txt"
        path.write_text("".join(f"{line}\n" for line in change(path.read_text().splitlines())))
        if not manifest:
            (folder / "data" / "manifest.json").unlink()

    return damage


def manifest(change):
    def damage(folder):
        path = folder / "data" / "manifest.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return damage


def counts(split, **values):
    return manifest(lambda content: content["splits"][split].update(values))


def tokens(*items, builder=MMapIndexedDatasetBuilder):
    """Writes another test split, without a manifest, as fairseq-preprocess does."""

    def damage(folder):
        made = builder(
            str(folder / "data" / "test.bin"), dtype=np.uint16 if builder is MMapIndexedDatasetBuilder else np.int32
        )
        for item in items:
            made.add_item(torch.tensor(item))
        made.finalize(str(folder / "data" / "test.idx"))
        (folder / "data" / "manifest.json").unlink()

    return damage


def one_token(position, token):
    def damage(folder):
        path = folder / "data" / "train.bin"
        content = np.fromfile(path, dtype=np.uint16)
        content[position] = token
        content.tofile(path)

    return damage


def no_text(folder):
    dictionary(lambda lines: lines)(folder)
    (folder / "data" / "dict.txt").write_bytes(bytes(range(256)))


def two_folders(folder):
    shutil.copytree(folder / "data", folder / "more")
    dictionary(lambda lines: lines[::-1])(folder)


def labelled(folder):
    """Replaces the data by generated data with labels."""
    empty(folder)
    line = f"--dest {folder / 'data'} --force --workers 1 --episodes 10 --count 2 --distance 1 9"
    scripts.load("copy_task").main(line.split())


NOT_THERE = "no dict.txt in {}: expected a data-bin made by data_prep/text.py or fairseq-preprocess"
LABELLED = r"data/manifest.json: .* labelled \(copy\), expected text; read it with --task memory_caching_tagging"
CUT = "test.idx is cut short.*: prepare the data again"
NO_MMAP = "test.idx is not an index of fairseq's mmap format: .*with data_prep/text.py, or .*default --dataset-impl"
MANIFEST = "data/manifest.json: {}; restore the files?, or make the data again"
REVERSED = dictionary(lambda lines: lines[::-1])

USES = [
    Use(
        "nothing but a training split",
        "train",
        "",
        r"no split 'valid' in data: .*found splits: train; prepare it with .*, or train without validating "
        r"\(--disable-validation\)",
        removed("valid.bin", "valid.idx", "test.bin", "test.idx"),
    ),
    Use("no folder", "train", "", NOT_THERE.format("nowhere"), data="nowhere"),
    Use("a folder with nothing in it", "train", "", NOT_THERE.format("data"), empty),
    Use("data with labels to train on", "train", "", LABELLED, labelled),
    Use("data with labels to score", "eval-lm", "", LABELLED, labelled),
    Use("no dictionary", "eval-lm", "", NOT_THERE.format("data"), removed("dict.txt")),
    Use(
        "no index",
        "train",
        "",
        "no split 'train' in data: expected train.bin and train.idx, found splits: test, valid;",
        removed("train.idx"),
    ),
    Use(
        "no tokens",
        "eval-lm",
        "",
        "no split 'test' in data: expected test.bin and test.idx, found splits: train, valid;",
        removed("test.bin"),
    ),
    Use(
        "tokens cut short",
        "train",
        "",
        "train.bin has 999 bytes where its index says 120000: it is damaged",
        cut_to(999, "train.bin"),
    ),
    Use("an index without a beginning", "eval-lm", "", NO_MMAP, cut_to(0, "test.idx")),
    Use(
        "an index cut in its header",
        "eval-lm",
        "",
        "test.idx is cut short or damaged at its beginning",
        cut_to(20, "test.idx"),
    ),
    Use("an index cut behind its header", "eval-lm", "", CUT, cut_to(36, "test.idx")),
    Use(
        "an index of another corpus",
        "eval-lm",
        "",
        "test.bin has 6002 bytes where its index says 8002: .*of another corpus",
        copied("valid.idx", "test.idx"),
    ),
    Use("data of another format", "eval-lm", "", NO_MMAP, tokens([5, 6, 7], builder=IndexedDatasetBuilder)),
    Use(
        "nothing to score", "eval-lm", "", "test.bin holds no token: there is nothing to train on or to score", tokens()
    ),
    Use(
        "a token outside the dictionary",
        "eval-lm",
        "",
        "token 2 of .*test.bin is 9999, but dict.txt has only 90 symbols",
        tokens([5, 6], [9999]),
    ),
    Use(
        "one far into the text",
        "train",
        "",
        "token 50000 of .*train.bin is 9999, .*; prepare it again",
        one_token(50000, 9999),
    ),
    Use(
        "a dictionary in another order",
        "eval-lm",
        "",
        "dict.txt: not the file that manifest.json names and the data beside it was made with",
        dictionary(lambda lines: lines[::-1], manifest=True),
    ),
    Use(
        "the same without a manifest",
        "eval-lm",
        "",
        "trained with another dictionary than the data's dict.txt",
        REVERSED,
    ),
    Use(
        "a dictionary cut short",
        "train",
        "",
        "but dict.txt has only 14 symbols: the data was made with another",
        dictionary(lambda lines: lines[:10]),
    ),
    Use(
        "folders with different dictionaries",
        "train",
        "",
        "more/dict.txt differs from data/dict.txt: .*prepare all folders",
        two_folders,
        data="data:more",
    ),
    Use(
        "a symbol twice",
        "train",
        "",
        r"dict.txt is not a dictionary \(line 87: .* is there already\)",
        dictionary(lambda lines: [*lines, lines[3]]),
    ),
    Use(
        "a line without a count",
        "train",
        "",
        r"\(line 87 is 'surprise', expected a symbol, a space and a count\)",
        dictionary(lambda lines: [*lines, "surprise"]),
    ),
    Use("a dictionary that is no text", "eval-lm", "", "dict.txt is not a dictionary .*utf-8.*: restore it", no_text),
    Use(
        "borders where every line ends in </s>",
        "train",
        "--break-memory-at-eos",
        r"in data every line ends in </s> \(bytes\), and --break-memory-at-eos would forget all at each: .* with "
        "--lines-are-documents",
        manifest(lambda content: content["options"].update(newlines="eos")),
    ),
    Use(
        "borders where every line ends in </s>, to score",
        "eval-lm",
        "--break-memory-at-eos",
        "in data every line ends in </s>",
        manifest(lambda content: content["options"].update(newlines="eos")),
    ),
    Use("a manifest cut short", "train", "", MANIFEST.format("not JSON .*"), cut_to(100, "manifest.json")),
    Use(
        "a manifest of another version",
        "eval-lm",
        "",
        MANIFEST.format("its format is not 3, the one this version reads"),
        manifest(lambda content: content.update(format=2)),
    ),
    Use(
        "a manifest of another corpus",
        "eval-lm",
        "",
        "dict.txt: not the file that manifest.json names",
        manifest(lambda content: content.update(dictionary_sha256="ab" * 32)),
    ),
    Use(
        "a wrong count of tokens",
        "train",
        "",
        MANIFEST.format("17 tokens in split train, and its files hold 60000"),
        counts("train", tokens=17),
    ),
    Use(
        "a wrong count of symbols",
        "train",
        "",
        MANIFEST.format("99 symbols, and dict.txt has 90"),
        manifest(lambda content: content.update(symbols=99)),
    ),
    Use(
        "no bytes to divide by",
        "eval-lm",
        "",
        MANIFEST.format("0 bytes and 3001 characters in split test, .*"),
        counts("test", text_bytes=0),
    ),
    Use(
        "a level that there is not",
        "eval-lm",
        "",
        MANIFEST.format("level is 'letters', expected one of bytes, .*"),
        manifest(lambda content: content.update(level="letters")),
    ),
]
