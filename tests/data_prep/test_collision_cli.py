"""The script collision.py: labels by an independent reader, movement by a slow simulation, and the errors."""

import itertools
import math
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scripts

from fairseq_expire.corpora import collision
from fairseq_expire.tokenizers.manifest import read_labelled_manifest

script = scripts.load("collision")
SPLITS = ("train", "valid", "test")


def run(line):
    script.main(line.split())


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def restored(capfdbinary):
    """Makes a reader of the symbols and the labels of a split, as --restore prints them."""

    def read(folder, split):
        capfdbinary.readouterr()
        run(f"--restore {folder} {split}")
        symbols = capfdbinary.readouterr().out.decode().splitlines()
        run(f"--restore {folder} {split} --labels")
        return symbols, capfdbinary.readouterr().out.decode().splitlines()

    return read


@pytest.fixture
def small_parts(monkeypatch):
    """Lets parts have 350 steps, of several stretches."""
    monkeypatch.setattr(collision, "STRETCHES", 5)
    monkeypatch.setattr(collision, "STRETCH_STEPS", 70)
    monkeypatch.setattr(collision, "PART_STEPS", 350)


def number(symbol, kind, below):
    assert symbol[0] == kind and 0 <= int(symbol[1:]) < below
    return int(symbol[1:])


def read_hard(symbols, *, grid, colours, ordered):
    """Reads each step (places, colours, colours of the question, those of the last collision), and its label."""
    last, latest, steps, labels = {}, None, [], []
    for start in range(0, len(symbols), 8):
        x, y, x2, y2, c, c2, q, q2 = (
            number(symbol, kind, grid if kind in "xy" else colours)
            for symbol, kind in zip(symbols[start : start + 8], "xyxyccqq", strict=True)
        )
        if (x, y) == (x2, y2):
            latest = (c, c2) if ordered else tuple(sorted([c, c2]))
            last[latest] = ("2" if x >= grid // 2 else "0", "1" if y >= grid // 2 else "0")
        if not ordered:
            assert q <= q2
        steps.append(((x, y), (x2, y2), (c, c2), (q, q2), latest))
        labels.append(str(sum(map(int, last[q, q2]))) if (q, q2) in last else "<pad>")
    return steps, labels


def read_easy(symbols, *, grid):
    """Reads each step (places, question), and its label."""
    history, steps, labels = "", [], []
    for start in range(0, len(symbols), 5):
        *places, question = symbols[start : start + 5]
        x, y, x2, y2 = (number(symbol, kind, grid) for symbol, kind in zip(places, "xyxy", strict=True))
        if x == x2 and y == y2:
            history += "0123"[(x >= grid // 2) * 2 + (y >= grid // 2)]
        wanted = {"q0": 1, "q1": 3}[question]
        steps.append(((x, y), (x2, y2), question))
        labels.append(history[-wanted:] if len(history) >= wanted else "<pad>")
    return steps, labels


def place_labels(labels, width):
    return [label for answer in labels for label in ["<pad>"] * (width - 1) + [answer]]


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(("grid", "colours", "pairs"), [(16, 5, "unordered"), (16, 5, "ordered"), (5, 2, "ordered")])
def test_the_hard_labels_are_those_of_an_independent_reader(restored, grid, colours, pairs):
    run(f"--dest data --steps 10010 --grid {grid} --colours {colours} --pairs {pairs} --workers 1")
    manifest, texts = read_labelled_manifest("data"), []
    for split in SPLITS:
        symbols, found = restored("data", split)
        steps, labels = read_hard(symbols, grid=grid, colours=colours, ordered=pairs == "ordered")
        assert found == place_labels(labels, 8)
        assert len(steps) == (10010 if split == "train" else 1001)
        # A part knows the collisions of those before it: the reader goes through, and these have none of some pairs.
        assert manifest.splits[split].items == math.ceil(len(steps) / 350)
        assert manifest.splits[split].labels == len(labels) - labels.count("<pad>")
        texts.append(" ".join(symbols))
        if split == "train":
            assert set(labels) == {"0", "1", "2", "3", "<pad>"}
    for one, other in itertools.permutations(texts, 2):
        assert one[:300] not in other


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("grid", [16, 6])
def test_the_easy_labels_are_those_of_an_independent_reader(restored, grid):
    run(f"--dest data --easy --grid {grid} --steps 10010 --workers 1")
    for split in SPLITS:
        symbols, found = restored("data", split)
        steps, labels = read_easy(symbols, grid=grid)
        assert found == place_labels(labels, 5)
        assert len(steps) == (10010 if split == "train" else 1001)
        if split == "train":
            kinds = Counter(question for _, _, question in steps)
            assert abs(kinds["q0"] / 10010 - 0.5) < 0.025
            # Collisions are more frequent on a small grid.
            assert len(set(labels)) == 69 or grid == 16


def slow_steps(steps, speed, seed):
    """The places of one particle after another, as the paper tells it: one number at a time, by Python's generator."""
    numbers = random.Random(seed)
    point = [numbers.uniform(0, 15), numbers.uniform(0, 15)]
    velocity = [numbers.gauss(0, speed), numbers.gauss(0, speed)]
    for _ in range(steps):
        while not all(0 <= at + by <= 15 for at, by in zip(point, velocity)):
            velocity = [numbers.gauss(0, speed), numbers.gauss(0, speed)]
        point = [at + by for at, by in zip(point, velocity)]
        yield tuple(map(round, point))


@pytest.mark.parametrize("speed", [1, 0.5])
def test_particles_move_as_in_a_slow_simulation(restored, speed):
    run(f"--dest data --steps 100000 --speed {speed} --workers 1")
    symbols, _ = restored("data", "train")
    steps, _ = read_hard(symbols, grid=16, colours=5, ordered=False)
    fast = np.array([step[:2] for step in steps])
    slow = np.stack([list(slow_steps(100_000, speed, particle)) for particle in range(2)], axis=1)
    for places in (fast, slow):
        assert places.min() == 0 and places.max() == 15
    moves, slow_moves = np.diff(fast, axis=0), np.diff(slow, axis=0)
    # Neighbouring steps are close, but for the six places where another stretch begins.
    inside = np.arange(1, len(fast)) % collision.STRETCH_STEPS != 0
    assert np.count_nonzero(~inside) == 6
    assert np.abs(moves[inside]).max() <= 5 * speed + 1
    # As often in each row, as far in a step, and turning as often. Slow particles stay for long, so that the means of
    # 100,000 steps still differ.
    rows, slow_rows = (np.bincount(places.ravel(), minlength=16) / places.size for places in (fast, slow))
    assert np.abs(rows - slow_rows).max() < 0.01
    assert np.abs(moves[inside]).mean() == pytest.approx(np.abs(slow_moves).mean(), rel=0.1)
    turns, slow_turns = (np.abs(np.diff(of, axis=0)).max(axis=-1) > 1 for of in (moves[inside], slow_moves))
    assert turns.mean() == pytest.approx(slow_turns.mean(), rel=0.1)
    expected = np.mean((slow[:, 0] == slow[:, 1]).all(axis=1))
    assert np.mean((fast[:, 0] == fast[:, 1]).all(axis=1)) == pytest.approx(expected, rel=0.25)


@pytest.mark.parametrize(("pairs", "questions"), [("unordered", 15), ("ordered", 25)])
def test_colours_and_questions_are_as_often_as_the_text_says(restored, pairs, questions):
    run(f"--dest data --steps 100000 --pairs {pairs} --workers 1")
    symbols, _ = restored("data", "train")
    steps, _ = read_hard(symbols, grid=16, colours=5, ordered=pairs == "ordered")
    colours = np.array([step[2] for step in steps])
    changed = (np.diff(colours, axis=0) != 0).mean(axis=0)
    assert changed == pytest.approx(0.05, rel=0.06)
    # To each other colour as often, and the particles change independently of each other.
    by = np.diff(colours, axis=0) % 5
    assert np.bincount(by.ravel())[1:] / len(steps) == pytest.approx(2 * 0.05 / 4, rel=0.1)
    assert (by != 0).all(axis=1).mean() == pytest.approx(0.05**2, rel=0.3)
    matching = np.mean([question == latest for _, _, _, question, latest in steps if latest])
    assert matching == pytest.approx(0.4 + 0.6 / questions, rel=0.02)
    others = Counter(question for _, _, _, question, latest in steps if latest and question != latest)
    assert len(others) == questions
    # Which collisions are the latest differs: an independent count of what remains for each question.
    latest = Counter(latest for *_, latest in steps if latest)
    total = sum(latest.values())
    for question, count in others.items():
        assert count == pytest.approx(0.6 / questions * (total - latest[question]), rel=0.12)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("task", ["--pairs ordered", "--easy"])
def test_the_data_depends_on_the_options_alone(capsys, task):
    run(f"--dest one {task} --steps 3000 --workers 1")
    run(f"--dest three {task} --steps 3000 --workers 3")
    run(f"--dest other {task} --steps 3000 --workers 1 --seed 2")
    assert contents("one") == contents("three")
    assert contents("one")[Path("input0/train.bin")] != contents("other")[Path("input0/train.bin")]
    capsys.readouterr()
    run("--verify three")
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == list(SPLITS)
    easy = task == "--easy"
    assert read_labelled_manifest("one").parameters == {
        "easy": easy,
        "grid": 16,
        "colours": None if easy else 5,
        "pairs": None if easy else "ordered",
        "speed": 1.0,
        "steps": 3000,
        "seed": 1,
    }


def test_the_dictionaries_are_in_order():
    run("--dest data --steps 10 --grid 3 --colours 2 --workers 1")
    names = [line.split()[0] for line in Path("data/input0/dict.txt").read_text().splitlines()]
    assert names == ["x0", "x1", "x2", "y0", "y1", "y2", "c0", "c1", "q0", "q1"]
    run("--dest easy --easy --steps 10 --grid 2 --workers 1")
    labels = [line.split()[0] for line in Path("easy/label/dict.txt").read_text().splitlines()]
    assert labels[:6] == ["0", "1", "2", "3", "000", "001"] and labels[-1] == "333" and len(labels) == 68


def test_the_fastest_particles_find_a_step():
    run("--dest data --steps 1000 --grid 2 --speed 1 --workers 1")
    assert read_labelled_manifest("data").splits["train"].tokens == 8000


ERRORS = {
    "--grid 1": "--grid 1: expected a number from 2 to 128",
    "--grid 129": "--grid 129: expected a number from 2 to 128",
    "--colours 1": "--colours 1: expected a number from 2 to 100",
    "--colours 101": "--colours 101: expected a number from 2 to 100",
    "--speed 0": "--speed 0.0: expected a number above 0",
    "--speed nan": "--speed nan: expected a number above 0",
    "--speed 15.5": "--speed 15.5: expected a number above 0 and at most --grid - 1, 15",
    "--easy --colours 3": "--easy has no colours; leave out --colours and --pairs",
    "--easy --pairs ordered": "--easy has no colours; leave out --colours and --pairs",
}


@pytest.mark.parametrize("line", ERRORS)
def test_a_wrong_use_is_an_error_and_leaves_nothing(capsys, line):
    with pytest.raises(SystemExit):
        run(f"--dest data --steps 10 {line}")
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"collision.py: error: {ERRORS[line]}")
    assert not Path("data").exists()
