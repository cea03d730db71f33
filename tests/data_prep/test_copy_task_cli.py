"""The script copy_task.py: episodes and labels by an independent reader, and the errors."""

import errno
import itertools
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import scripts

from fairseq_expire.corpora import split_files
from fairseq_expire.tokenizers.manifest import read_labelled_manifest

ROOT = Path(__file__).resolve().parents[2]
script = scripts.load("copy_task")
SPLITS = ("train", "valid", "test")


def run(line):
    script.main(line.split())


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def restored(capfdbinary):
    """Makes data, and reads the symbols and the labels of a split as --restore prints them."""

    def read(folder, split):
        capfdbinary.readouterr()
        run(f"--restore {folder} {split}")
        symbols = capfdbinary.readouterr().out.decode().splitlines()
        run(f"--restore {folder} {split} --labels")
        return symbols, capfdbinary.readouterr().out.decode().splitlines()

    return read


def read_episodes(symbols):
    """Reads the numbers of A and B of each episode, and the labels that the text of the task gives."""
    labels, episodes = [], []
    places = iter(symbols)
    for first in places:
        assert first == "A"
        count, distance = 1, 0
        while (symbol := next(places)) == "A":
            count += 1
        while symbol == "B":
            distance, symbol = distance + 1, next(places)
        assert symbol == "?"
        for _ in range(count):
            assert next(places) == "A"
        assert next(places) == "."
        labels += ["<pad>"] * (count + distance) + ["A"] * count + [".", "<pad>"]
        episodes.append((count, distance))
    return episodes, labels


@pytest.mark.parametrize("size", ["--episodes 3000", "--steps 70000"])
def test_the_labels_are_those_of_an_independent_reader(monkeypatch, restored, size):
    # Of some 45 episodes, so that there are many.
    monkeypatch.setattr(script, "PART_SYMBOLS", 1_000)
    run(f"--dest data --count 5 --distance 3 23 --workers 1 {size}")
    manifest, texts = read_labelled_manifest("data"), []
    for split in SPLITS:
        symbols, found = restored("data", split)
        episodes, labels = read_episodes(symbols)
        assert found == labels
        counts = manifest.splits[split]
        assert counts.tokens == len(symbols) and counts.labels == sum(label != "<pad>" for label in labels)
        assert counts.items > (20 if split == "train" else 1)
        share = 1 if split == "train" else 10
        if "--episodes" in size:
            assert len(episodes) == 3000 // share
        else:
            *_, last = episodes
            assert len(symbols) - (2 * last[0] + last[1] + 2) < 70000 // share <= len(symbols)
        texts.append("".join(symbols))
        if split == "train":
            check_uniform([count for count, _ in episodes], 1, 5)
            check_uniform([distance for _, distance in episodes], 3, 23)
            # Independent of each other.
            check_uniform([distance for count, distance in episodes if count == 5], 3, 23)
    # No split, and no part, is a copy of another.
    for one, other in itertools.permutations(texts, 2):
        assert one[:300] not in other
    assert texts[0].count(texts[0][1000:1300]) == 1


def check_uniform(numbers, low, high):
    """Compares with a uniform distribution: every value is there, and chi squared is not far from its mean."""
    counts, expected = Counter(numbers), len(numbers) / (high - low + 1)
    assert set(counts) == set(range(low, high + 1))
    freedom = high - low
    chi_squared = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_squared < freedom + 5 * (2 * freedom) ** 0.5


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_the_data_depends_on_the_options_alone(monkeypatch, capsys):
    monkeypatch.setattr(script, "PART_SYMBOLS", 1_000)
    options = "--count 3 --distance 1 50 --episodes 200"
    run(f"--dest one {options} --workers 1")
    run(f"--dest three {options} --workers 3")
    run(f"--dest other {options} --workers 1 --seed 2")
    assert contents("one") == contents("three")
    assert contents("one")[Path("input0/train.bin")] != contents("other")[Path("input0/train.bin")]
    capsys.readouterr()
    run("--verify three")
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == list(SPLITS)
    assert read_labelled_manifest("one").parameters == {
        "count": 3, "distance": [1, 50], "episodes": 200, "steps": None, "seed": 1,
    }  # fmt: skip


def test_the_longest_distance(restored):
    """That of the paper, in every episode."""
    run("--dest data --count 1 --distance 131072 131072 --episodes 2 --workers 1")
    symbols, labels = restored("data", "test")
    assert read_episodes(symbols) == ([(1, 131072)], labels)
    assert read_labelled_manifest("data").splits["train"].tokens == 2 * 131076


def test_what_is_said(capsys):
    run("--dest data --count 1 --distance 1 1 --episodes 20")
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["split", "tokens", "labels"],
        ["train", "100", "40"],
        ["valid", "10", "4"],
        ["test", "10", "4"],
        ["8", "symbols", "and", "6", "labels", "in", "the", "dictionaries"],
    ]


def test_force_replaces_the_data(capsys):
    run("--dest data --episodes 1 --distance 1 9")
    with pytest.raises(SystemExit):
        run("--dest data --episodes 2 --distance 1 9")
    assert "data: there already, with data in it; add --force" in capsys.readouterr().err
    run("--dest data --episodes 2 --distance 1 9 --force")
    assert read_labelled_manifest("data").parameters["episodes"] == 2


ERRORS = {
    "": "--dest is missing; give the folder to make",
    "--dest data --distance 9 1": "--distance 9 1: expected two numbers from 1 to 131072, the smaller one first",
    "--dest data --distance 1 131073": "--distance 1 131073: expected two numbers from 1 to 131072",
    "--dest data --distance 0 5": "argument --distance: 0 is not a number above 0",
    "--dest data --distance 5": "argument --distance: expected 2 arguments",
    "--dest data --count 131073": "--count 131073: expected a number from 1 to 131072",
    "--dest data --count 0": "argument --count: 0 is not a number above 0",
    "--dest data --episodes 5 --steps 9": "argument --steps: not allowed with argument --episodes",
    "--dest data --episodes 0": "argument --episodes: 0 is not a number above 0",
    "--dest data --seed -1": "argument --seed: -1 is not a number from 0 on",
    "--dest data --labels": "--labels is for --restore; leave it out",
    "--verify made --labels": "--labels is for --restore; leave it out",
    "--restore made dev": "made: no split dev; it has train, valid, test",
    "--restore nowhere test": "nowhere: no manifest.json there; give a folder that",
    "--verify nowhere": "nowhere: no manifest.json there; give a folder that",
    "--verify collision": "--verify: the data is collision, and copy_task.py makes copy; verify it with",
    "--verify changed": "manifest.json has wrong parameters (Copy.__init__() missing",
    "--verify beyond": "manifest.json has wrong parameters (--distance 3 2: expected",
    "--verify lacking": "lacking/label/test.bin: No such file or directory",
}


@pytest.mark.parametrize("line", ERRORS)
def test_errors(capsys, line):
    for name, change in {
        "made": None,
        "collision": ('"corpus": "copy"', '"corpus": "collision"'),
        "changed": ('"count": 10,', ""),
        "beyond": ("131072", "2"),
        "lacking": None,
    }.items():
        if name not in line:
            continue
        run(f"--dest {name} --episodes 1 --distance 3 131072 --workers 1")
        path = Path(name, "manifest.json")
        path.write_text(path.read_text().replace(*change) if change else path.read_text())
        if name == "lacking":
            Path(name, "label/test.bin").unlink()
    before = sorted(Path().rglob("*"))
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run(line)
    assert caught.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"copy_task.py: error: {ERRORS[line]}")
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left on device", "train.bin")])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_stopped_run_leaves_nothing_and_can_be_repeated(monkeypatch, capsys, stop, workers):
    def add(*arguments):
        raise stop

    line = f"--dest deep/data --episodes 40 --workers {workers}"
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(split_files.SplitWriter, "add", add)
        run(line)
    assert "run the same command again" in capsys.readouterr().err.splitlines()[-1]
    assert not any(Path().iterdir())
    run(line)
    run("--verify deep/data")


def test_the_script_in_a_process_of_its_own():
    """A reader that has seen enough, and the copy of Python's own that dataclasses needs."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    run("--dest data --episodes 40")
    command = f"{sys.executable} {ROOT}/data_prep/copy_task.py --restore data train | head -1"
    done = subprocess.run(command, shell=True, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("A\n", "")
