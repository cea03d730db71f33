"""Generated data with labels: what fairseq reads is what the generator made, and every damage is found."""

import functools
import json
import weakref
import zlib

import killable
import numpy as np
import pytest
from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import MMapIndexedDataset

from fairseq_expire.corpora.generated import (
    Part,
    count_parts,
    generate,
    random_numbers,
    restore_generated,
    verify_generated,
)
from fairseq_expire.files import new_folder
from fairseq_expire.tokenizers.manifest import FILE_NAME, read_labelled_manifest

SPLITS = ("train", "valid", "test")
FILES = [
    f"{stream}/{split}.{suffix}" for stream in ("input0", "label") for split in SPLITS for suffix in ("bin", "idx")
]


class Sums:
    """Digits; after each "=", the label is the last digit of the sum of all digits of the split so far."""

    corpus = "sums"
    symbols = (*"0123456789", "=")
    labels = tuple(f"sum{digit}" for digit in range(10))

    def __init__(self, *, seed=1, parts=7):
        self.parts = parts
        self.parameters = {"seed": seed, "parts": parts}

    def num_parts(self, split):
        return self.parts if split == "train" else 1

    def simulate(self, split, number):
        random = random_numbers(self.parameters["seed"], split, number)
        return random.integers(0, 11, size=random.integers(1, 300))

    def finish(self, simulated, carry):
        labels, total = np.full(len(simulated), -1), carry or 0
        for place, symbol in enumerate(simulated):
            if symbol == 10:
                labels[place] = total % 10
            else:
                total += int(symbol)
        return Part(simulated, labels), total


def make(dest, generator, *, force=False, **kwargs):
    with new_folder(dest, mark=FILE_NAME, force=force) as folder:
        return generate(generator, folder, **kwargs)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def verify(folder, **kwargs):
    return list(verify_generated(lambda manifest: Sums(**manifest.parameters), folder, **kwargs))


@pytest.fixture
def data(tmp_path):
    make(tmp_path / "data", Sums(), workers=1)
    return tmp_path / "data"


def test_fairseq_reads_the_streams(data):
    total, symbols, counted = {}, Dictionary.load(str(data / "input0/dict.txt")), {}
    labels = Dictionary.load(str(data / "label/dict.txt"))
    assert symbols.symbols[4:] == list(Sums.symbols) and labels.symbols[4:] == list(Sums.labels)
    manifest = read_labelled_manifest(data)
    for split in SPLITS:
        inputs, answers = (MMapIndexedDataset(str(data / stream / split)) for stream in ("input0", "label"))
        assert len(inputs) == len(answers) == manifest.splits[split].items == Sums().num_parts(split)
        assert (inputs.sizes == answers.sizes).all() and inputs.sizes.sum() == manifest.splits[split].tokens
        total[split] = counted[split] = 0
        for number in range(len(inputs)):
            for symbol, label in zip(inputs[number].tolist(), answers[number].tolist(), strict=True):
                if symbols[symbol] == "=":
                    assert labels[label] == f"sum{total[split] % 10}"
                    counted[split] += 1
                else:
                    assert label == labels.pad()
                    total[split] += int(symbols[symbol])
        assert manifest.splits[split].labels == counted[split]
    # Nothing is a copy of another split, and dictionaries count train.
    assert len(set(total.values())) == 3
    assert symbols.count[symbols.index("=")] == counted["train"] == sum(labels.count[4:])


def test_the_data_depends_on_the_seed_alone(tmp_path):
    make(tmp_path / "one", Sums(), workers=1)
    make(tmp_path / "three", Sums(), workers=3)
    make(tmp_path / "another", Sums(seed=2), workers=1)
    one, another = contents(tmp_path / "one"), contents(tmp_path / "another")
    assert contents(tmp_path / "three") == one
    assert set(one) == {*FILES, "input0/dict.txt", "label/dict.txt", "manifest.json"}
    assert all(another[name] != one[name] for name in FILES)


def test_progress_is_that_of_all_parts(data, tmp_path):
    seen = []
    make(tmp_path / "other", Sums(), workers=2, on_progress=lambda split, parts: seen.append((split, parts)))
    assert seen == [("train", 1)] * 7 + [("valid", 1), ("test", 1)] and len(seen) == count_parts(Sums())
    again = []
    verify(data, on_progress=lambda split, parts: again.append((split, parts)))
    assert again == seen


def test_restoring(data):
    parts = [Sums().simulate("train", number) for number in range(7)]
    text = "".join(f"{Sums.symbols[symbol]}\n" for part in parts for symbol in part)
    assert b"".join(restore_generated(data, split="train")).decode() == text
    labels = b"".join(restore_generated(data, split="train", labels=True)).decode().split("\n")
    assert labels.pop() == "" and len(labels) == text.count("\n")
    assert [label != "<pad>" for label in labels] == [symbol == "=" for symbol in text.split()]
    with pytest.raises(ValueError, match="no split dev; it has train, valid, test"):
        restore_generated(data, split="dev")


def change(content):
    """Replaces the first symbol by another one."""
    content[0] = 5 if content[0] != 5 else 6


def shorten(content):
    del content[-2:]


def lengthen(content):
    content += content[:2]


@pytest.mark.parametrize("damage", [change, shorten, lengthen], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", [*(name for name in FILES if "test" not in name), "label/dict.txt", "input0/dict.txt"])
def test_damage_is_found(data, name, damage):
    content = bytearray((data / name).read_bytes())
    damage(content)
    (data / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{data / name}: .*; make the data again"):
        verify(data)


def set_manifest(data, change):
    content = json.loads((data / "manifest.json").read_text())
    change(content)
    (data / "manifest.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"seed": 2}, r"input0/train.bin: differs at position \d+ from what its parameters give with version .* numpy"),
        ({"parts": 6}, "input0/train.bin: longer than what its parameters give"),
        ({"parts": 8}, r"input0/train.bin: differs at position \d+ from what its parameters give"),
    ],
)
def test_other_parameters_are_found(data, parameters, message):
    assert len(verify(data)) == 3
    set_manifest(data, lambda content: content["parameters"].update(parameters))
    with pytest.raises(ValueError, match=message):
        verify(data)


def test_other_items_are_found(data):
    """A border between items that the manifest describes, and the parameters do not."""
    path = data / "label/train.idx"
    content = bytearray(path.read_bytes())
    # The sizes of the first two items.
    content[26:34] = (np.frombuffer(content, np.int32, count=2, offset=26) + np.array([1, -1], np.int32)).tobytes()
    path.write_bytes(content)
    set_manifest(data, lambda manifest: manifest["splits"]["train"].update(label_idx_crc32=zlib.crc32(content)))
    with pytest.raises(ValueError, match=r"label/train.idx: items end elsewhere than its parameters give"):
        verify(data)


@pytest.mark.parametrize("symbols", [("a", "b", "a"), ("a b",), ("",), ("<pad>",), ("\u3000",)])
def test_symbols_that_no_dictionary_can_have(tmp_path, symbols):
    generator = Sums()
    generator.labels = symbols
    with pytest.raises(ValueError, match="expected symbols without white space, each once, and none of fairseq's own"):
        make(tmp_path / "data", generator)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "symbols, labels, message",
    [
        ([1, 2], [0], "part 0 of train has 2 symbols and 1 labels"),
        ([], [], "part 0 of train has 0 symbols and 0 labels"),
        ([1, -1], [0, 0], "a symbol everywhere"),
        ([1, 11], [0, 0], "input0: indices from 1 to 11, expected -1 to 10"),
        ([1, 2], [0, -2], "label: indices from -2 to 0, expected -1 to 9"),
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_parts_that_do_not_fit(tmp_path, symbols, labels, message, workers):
    generator = Sums()
    generator.finish = lambda simulated, carry: (Part(np.array(symbols, int), np.array(labels, int)), None)
    with pytest.raises(ValueError, match=message):
        make(tmp_path / "data", generator, workers=workers)
    assert not any(tmp_path.iterdir())


def test_a_kill_after_any_number_of_parts(tmp_path):
    whole, dest = tmp_path / "whole", tmp_path / "data"
    make(whole, Sums(), workers=1)
    make(dest, Sums(seed=3), workers=1)
    old = contents(dest)

    def run(parts):
        def on_progress(split, number):
            nonlocal parts
            parts -= 1
            if parts < 0:
                killable.kill_this_process()

        make(dest, Sums(), force=True, workers=1, on_progress=on_progress)

    parts = 0
    while killable.run(functools.partial(run, parts)):
        assert contents(dest) == old
        parts += 1
    assert parts == count_parts(Sums())
    assert contents(dest) == contents(whole) and not (tmp_path / "data.partial").exists()


def test_memory_does_not_grow_with_the_data(tmp_path):
    made, alive = [], []

    class Counting(Sums):
        def simulate(self, split, number):
            part = super().simulate(split, number)
            made.append(weakref.ref(part))
            alive.append(sum(other() is not None for other in made))
            return part

    make(tmp_path / "data", Counting(parts=60), workers=1)
    assert len(alive) == 62 and max(alive) <= 3
