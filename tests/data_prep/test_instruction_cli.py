"""The script instruction.py: instructions and answers by an independent reader of the text, and the errors."""

import bz2
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scripts

from fairseq_expire.corpora import answers as answer_files
from fairseq_expire.corpora.verify import restore
from fairseq_expire.tokenizers.bound import BoundTokenizer
from fairseq_expire.tokenizers.manifest import read_manifest

script = scripts.load("instruction")
SPLITS = ("train", "valid", "test")

# In words and in subwords.
NAME = "([a-z ]+)"
INSTRUCTION = re.compile(f'The {NAME} says ?, ?" ?can you tell the {NAME} that the {NAME} wants to see them ?\\? ?"')
ARRIVAL = re.compile(rf"You go to the {NAME} ?\. The {NAME} is here ?\.")


def run(line):
    script.main(line.split())


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class Reading:
    """Notes of somebody who reads a text and knows the rules alone."""

    def __init__(self, text, level):
        self.answers, self.distances, self.others, self.queue = [], [], [], 0
        self.without = 0
        answer = (
            'You tell the {} " {} wants to see you ! "'
            if level == "words"
            else 'You tell the {} "{} wants to see you!"'
        )
        pending, expected, offset = {}, None, 0
        assert text.endswith("\n")
        for line in text.split("\n")[:-1]:
            instruction, arrival = INSTRUCTION.fullmatch(line.strip()), ARRIVAL.fullmatch(line.strip())
            if expected:
                assert line == expected
                self.answers.append((offset, line))
                expected = None
            elif instruction:
                speaker, target, sender = (name.strip() for name in instruction.groups())
                assert len({speaker, target, sender}) == 3 and target not in pending
                pending[target] = (sender, len(self.others))
                self.queue = max(self.queue, len(pending))
            elif arrival:
                who = arrival[2].strip()
                if who in pending:
                    sender, since = pending.pop(who)
                    expected = answer.format(who, sender)
                    self.distances.append(len(self.others) - since)
                else:
                    self.without += 1
            else:
                assert "tell the" not in line and "is here" not in line and "to see" not in line
                self.others.append(line)
            offset += len(line) + 1
        assert not pending and not expected


def text_of(folder, split):
    return b"".join(restore(folder, split=split)).decode()


def check_intervals(folder, split, reading):
    """Compares the intervals with the answers of the reader."""
    tokenizer = BoundTokenizer.load(folder)
    dtype = np.uint16 if len(tokenizer.symbols) < 65500 else np.int32
    ids = np.fromfile(f"{folder}/{split}.bin", dtype=dtype)
    intervals = np.load(f"{folder}/{split}.answers.npy")
    assert intervals.dtype == np.int64 and intervals.shape == (len(reading.answers), 2)
    place = offset = 0
    for (start, stop), (at, line) in zip(intervals.tolist(), reading.answers):
        assert start >= place
        offset += len(tokenizer.decode(ids[place:start]))
        assert offset == at and tokenizer.decode(ids[start:stop]).strip() == line
        # No token of the interval has text from outside.
        offset += len(tokenizer.decode(ids[start:stop]))
        place = stop
    assert read_manifest(folder).source["answers"][split]["number"] == len(intervals)


@pytest.mark.parametrize("level", ["words", "subword"])
def test_an_independent_reader_predicts_every_answer(monkeypatch, level):
    # Of some 30 instructions, so that there are many; tokens are read in many parts, too.
    monkeypatch.setattr(script, "PART_LINES", 100)
    monkeypatch.setattr(answer_files, "READ_TOKENS", 97)
    run(f"--dest data --level {level} --episodes 2000 --mean-distractors 7 --queue 4 --workers 1")
    texts = [text_of("data", split) for split in SPLITS]
    for split, text in zip(SPLITS, texts):
        reading = Reading(text, level)
        check_intervals("data", split, reading)
        assert len(reading.answers) == reading.without == (2000 if split == "train" else 200)
        assert reading.queue == 4
        if split == "train":
            check_uniform(reading.distances, 1, 13)
            senders = Counter(re.search(f'"{NAME}wants', line)[1].strip() for _, line in reading.answers)
            assert set(senders) == set(script.PEOPLE_NAMES)
    assert not set(texts[1].splitlines()[:50]) <= set(texts[2].splitlines())
    assert texts[0].count(texts[0][1000:1300]) == 1


def check_uniform(numbers, low, high):
    """Compares with a uniform distribution: every value is there, and chi squared is not far from its mean."""
    counts, expected = Counter(numbers), len(numbers) / (high - low + 1)
    assert set(counts) == set(range(low, high + 1))
    chi_squared = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_squared < high - low + 5 * (2 * (high - low)) ** 0.5


def test_the_default_distances_are_the_papers():
    options = script.build_parser().parse_args([])
    assert (options.mean_distractors, options.level, options.seed) == (950, "words", 1)
    write = script.separated
    instructions = script.Instructions(
        episodes=300, queue=3, mean_distractors=950, seed=1, write=write, distractors=script.Grammar(write)
    )
    parts = [instructions.part("train", number) for number in range(instructions.num_parts("train"))]
    assert sum(len(part.answers) for part in parts) == 300
    distances = [distance for part in parts for distance in Reading(part.text.decode(), "words").distances]
    # The standard deviation of a mean of 300 is 32.
    assert min(distances) >= 1 and max(distances) <= 1899 and abs(np.mean(distances) - 950) < 150


def test_sentences_of_the_grammar_are_no_instructions():
    for name in ("PEOPLE", "PLACES", "THINGS", "QUALITIES", "TOPICS"):
        phrases = script.listed(getattr(script, name))
        assert len(phrases) == len(set(phrases)) > 20 and all(re.fullmatch("[a-z ]+", phrase) for phrase in phrases)
    assert not any(map(script.MARKERS.search, script.SENTENCES.splitlines()))
    assert all(map(script.MARKERS.search, (script.INSTRUCTION, script.ARRIVAL, script.ANSWER)))


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@pytest.mark.parametrize("level", ["words", "subword"])
def test_the_data_depends_on_the_options_alone(monkeypatch, capsys, level):
    monkeypatch.setattr(script, "PART_LINES", 100)
    options = f"--level {level} --episodes 300 --mean-distractors 5"
    run(f"--dest one {options} --workers 1")
    assert "answers: 300 in train, 30 in valid, 30 in test" in capsys.readouterr().out
    run(f"--dest three {options} --workers 3")
    run(f"--dest other {options} --workers 1 --seed 2")
    one = contents("one")
    assert one == contents("three")
    assert one[Path("train.bin")] != contents("other")[Path("train.bin")]
    names = {f"{split}.{kind}" for split in SPLITS for kind in ("bin", "idx", "answers.npy")}
    assert set(map(str, one)) == names | {"dict.txt", "manifest.json"} | (
        {"spm.model"} if level == "subword" else set()
    )
    source = read_manifest("one").source
    expected = {"corpus": "instruction", "episodes": 300, "mean_distractors": 5, "queue": 3, "seed": 1}
    assert source.items() >= {**expected, "distractors": None, "threshold": 0, "numpy": np.__version__}.items()
    run("--verify one")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3:] == ["train: 300 answers: as made", "valid: 30 answers: as made", "test: 30 answers: as made"]
    run(f"--dest one {options} --workers 1 --force")
    assert contents("one") == one


def test_one_answer_a_split():
    run("--dest data --episodes 1 --mean-distractors 1 --queue 22 --workers 1 --distractors " + odd_text())
    for split in SPLITS:
        reading = Reading(text_of("data", split), "words")
        assert len(reading.answers) == 1 and reading.distances == [1]
        check_intervals("data", split, reading)


# Lines that may be distractors, and the words that they are.
KEPT = {
    "A plain line.": "A plain line .",
    "": None,
    '  Odd\twhite\u2028space,  "quoted"  ': 'Odd white space , " quoted "',
    "Don't tell {0} about <pad> and </s>!": "Don't tell {0} about < pad > and < / s > !",
    "caf\u00e9 \u4f60\u597d - half-way": "caf\u00e9 \u4f60\u597d - half-way",
    'You tell the butler "cook wants to see you!"': None,
    "He said: you TELL  the truth.": None,
    "The butler is here.": None,
    'The cook says, "can you tell the butler that the king wants to see them?"': None,
    "They want to see.": None,
    "...": ". . .",
}


def odd_text():
    """Writes a folder of text, and returns its name."""
    Path("texts").mkdir()
    lines = list(KEPT)
    Path("texts/a.txt").write_bytes("\r\n".join(lines[:6] * 5).encode())
    Path("texts/b.txt.bz2").write_bytes(bz2.compress("\n".join(lines[6:] * 5).encode()))
    Path("texts/.hidden").write_text("hidden")
    return "texts"


def test_odd_distractors(capsys):
    run(f"--dest data --episodes 40 --mean-distractors 4 --workers 2 --distractors {odd_text()}")
    words = [line for line in KEPT.values() if line]
    # Five times, and the shares of the splits.
    taken = [line for line in KEPT.values() if line][:4] * 5 + [KEPT["..."]] * 5
    assert len(words) == 5 and read_manifest("data").source["distractors"] == {
        "name": "texts",
        "lines": 25,
        "left_out": 25,
    }
    parts = {"train": taken[:20], "valid": taken[20:22], "test": taken[22:]}
    for split in SPLITS:
        reading = Reading(text_of("data", split), "words")
        check_intervals("data", split, reading)
        assert len(reading.answers) == (40 if split == "train" else 4)
        part = parts[split]
        # In the order of the text, from some line on, again and again.
        assert any(
            reading.others == [part[(first + index) % len(part)] for index in range(len(reading.others))]
            for first in range(len(part))
        )


def test_odd_distractors_as_subwords():
    run(f"--dest data --level subword --vocab-size 340 --episodes 40 --mean-distractors 4 --distractors {odd_text()}")
    others = set()
    for split in SPLITS:
        text = text_of("data", split)
        reading = Reading(text, "subword")
        others |= set(reading.others)
    assert others == {" ".join(line.split()) for line, words in KEPT.items() if words}


@pytest.fixture
def error(capsys):
    """Runs the script and returns its error."""

    def run_wrongly(line):
        with pytest.raises(SystemExit):
            run(line)
        [found] = capsys.readouterr().err.splitlines()
        return found

    return run_wrongly


def test_damaged_answers(error):
    run("--dest data --episodes 10 --mean-distractors 4 --workers 1")
    path = Path("data/valid.answers.npy")
    np.save(path, np.load(path) + 1)
    assert "data/valid.answers.npy: CRC-32" in error("--verify data")
    path.unlink()
    assert "valid.answers.npy" in error("--verify data")


def test_a_threshold_that_takes_words_of_answers(error):
    message = error("--dest data --episodes 30 --mean-distractors 1 --threshold 60 --workers 1")
    assert "train: an answer has a word that the dictionary lacks; lower --threshold" in message
    assert not Path("data").exists() and not Path("data.partial").exists()
