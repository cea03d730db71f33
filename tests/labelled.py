"""Small data with labels: numbers of A that have to be repeated after a ``?``, as in the copy task."""

from pathlib import Path

import numpy as np
import torch
from fairseq.data.indexed_dataset import MMapIndexedDatasetBuilder

PAD, EOS = 1, 2
# Numbers of the symbols, after fairseq's special ones.
INPUTS, LABELS = ["A", "B", "?"], ["A", "."]


def episodes(number: int, *, seed: int, distance: int = 12) -> list[tuple[list[str], list[str]]]:
    """Returns inputs and labels of so many episodes."""
    random, made = np.random.default_rng(seed), []
    for _ in range(number):
        count, far = int(random.integers(1, 5)), int(random.integers(1, distance))
        inputs = ["A"] * count + ["B"] * far + ["?"] + ["A"] * count
        made.append((inputs, ["<pad>"] * (count + far) + ["A"] * count + ["."]))
    return made


def write_split(prefix: Path, items) -> None:
    """Writes items of numbers as fairseq's mmap format."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    builder = MMapIndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    for item in items:
        builder.add_item(torch.as_tensor(np.asarray(item, dtype=np.int64)))
    builder.finalize(f"{prefix}.idx")


def numbers(symbols: list[str], names: list[str]) -> list[int]:
    """Returns the numbers of symbols in a dictionary of these names."""
    return [PAD if symbol == "<pad>" else 4 + names.index(symbol) for symbol in symbols]


def write(folder: Path, *, train: int = 60, others: int = 20, eos: bool = False) -> Path:
    """Writes a folder of data, with ``</s>`` at the end of each episode if asked to. Returns it."""
    end = [EOS] if eos else []
    for part, names in (("input0", INPUTS), ("label", LABELS)):
        for seed, (split, number) in enumerate({"train": train, "valid": others, "test": others}.items()):
            pairs = [pair[part == "label"] for pair in episodes(number, seed=seed)]
            write_split(folder / part / split, [numbers(symbols, names) + end for symbols in pairs])
        (folder / part / "dict.txt").write_text("".join(f"{name} 1\n" for name in names))
    return folder


def read(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the inputs [N] and the labels [N] of a split, read without fairseq."""
    return tuple(
        np.fromfile(folder / part / f"{split}.bin", dtype=np.uint16).astype(np.int64) for part in ("input0", "label")
    )
