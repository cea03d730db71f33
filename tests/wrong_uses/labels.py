"""Data with labels that is missing, damaged or does not belong together, and models of the other kind."""

import json

import labelled
import numpy as np

from wrong_uses import Use
from wrong_uses.data import empty
from wrong_uses.data import labelled as generated

TAGGING = "--task memory_caching_tagging"


def changed(change):
    """Replaces the data by data with labels, and damages it: ``change`` gets its folder."""

    def damage(folder):
        empty(folder)
        labelled.write(folder / "data", train=20, others=5)
        change(folder / "data")

    return damage


def no_labels(data):
    for path in (data / "label").iterdir():
        path.unlink()


def split(name, items):
    return lambda data: labelled.write_split(data / name, items)


def other_counts(folder):
    generated(folder)
    path = folder / "data" / "manifest.json"
    content = json.loads(path.read_text())
    content["splits"]["train"]["labels"] += 1
    path.write_text(json.dumps(content))


def other_dictionary(folder):
    generated(folder)
    path = folder / "data" / "label" / "dict.txt"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))


def answers(content):
    return lambda folder: np.save(folder / "data" / "test.answers.npy", content)


def right(data):
    """Leaves the data as it is."""


SHARE = "--share-decoder-input-output-embed"
SHARED = "one matrix for the symbols that are read and those that are predicted"
COPIED = r"data/manifest.json: .* labels that count in split train, and its files hold"

USES = [
    Use("text with the task of labels", "train", TAGGING, "data beside it is text.*--task memory_caching_lm"),
    Use(
        "no dictionary of labels",
        "train",
        TAGGING,
        "no data/label/dict.txt: expected labelled data",
        changed(no_labels),
    ),
    Use(
        "fewer labels than inputs",
        "train",
        TAGGING,
        r"train.bin has \d+ tokens and data/label/train.bin has 3 labels: expected a label for each",
        changed(split("label/train", [[4, 5, 1]])),
    ),
    Use(
        "a language model for labels",
        "eval-lm",
        TAGGING,
        "predicts the next token",
        changed(right),
    ),
    Use(
        "labels outside of their dictionary",
        "train",
        TAGGING,
        "token 0 of data/label/train.bin is 90, but dict.txt has only 6 symbols",
        changed(split("label/train", [[90, 5, 1]])),
    ),
    Use("a manifest of other labels", "train", TAGGING, COPIED, other_counts),
    Use("another dictionary of labels", "train", TAGGING, "label/dict.txt: not the file that", other_dictionary),
    Use(
        "shared embeddings of labels", "train", f"{TAGGING} --share-decoder-input-output-embed", SHARED, changed(right)
    ),
    Use(
        "an adaptive softmax larger than the labels",
        "train",
        f"{TAGGING} --adaptive-softmax-cutoff 7",
        "at most the 6 symbols of the dictionary",
        changed(right),
    ),
    Use("an option of text for labels", "train", f"{TAGGING} --utf8", "unrecognized arguments: --utf8", changed(right)),
    Use(
        "answers that overlap",
        "eval-lm",
        "",
        "data/test.answers.npy: answers have to be in order",
        answers(np.array([[0, 3], [2, 4]])),
    ),
    Use("answers of fractions", "eval-lm", "", "test.answers.npy holds float64", answers(np.zeros((2, 2)))),
]
