"""Data of fairseq-preprocess, with dictionaries as its options and its users make them.

A model can be trained with it, and text can be prepared with its dictionary.
"""

import numpy as np
import pytest
import scripts
from fairseq import options
from fairseq.data import Dictionary
from fairseq.data.encoders.bytes import Bytes
from fairseq.data.encoders.characters import Characters
from fairseq_cli import preprocess

from fairseq_expire.tasks.memory_caching_lm import MemoryCachingLMConfig, MemoryCachingLMTask
from fairseq_expire.tokenizers.manifest import read_manifest

TRAIN = ["the cat sat on the mat", "a \u00e9 \u4e2d \U0001f600 <unk> <s> the", "on <pad> and on", "the the a a a"]
TEST = "the mat \u00e9 new <pad> on \u4e2d a <unk>"
# Turns a line of text into what fairseq-preprocess is given.
LEVELS = {"words": str, "bytes": Bytes.encode, "chars": Characters.encode}

MADE = {
    "plain": "",
    "filled up": "--padding-factor 32",
    "not filled up": "--padding-factor 1",
    "few words": "--nwordssrc 12",
    "frequent ones": "--thresholdsrc 2",
}
CHANGED = {
    "reordered": lambda lines: lines[::-1],
    "fewer": lambda lines: lines[::2],
    "more": lambda lines: ["<mask> 0", *lines, "[lang] 1", "madeupword0007 0", "surprise 4"],
    "listed again": lambda lines: [*lines, f"{lines[0]} #fairseq:overwrite", lines[1] + " #fairseq:overwrite"],
    "special ones as words": lambda lines: ["<pad> 3 #fairseq:overwrite", *lines, "<s> 1 #fairseq:overwrite"],
    "other counts": lambda lines: [
        f"{line.rpartition(' ')[0]} {count}" for line, count in zip(lines, ["-1", "+2", "1_000"] * 99)
    ],
    "an empty symbol": lambda lines: [*lines, " 5"],
}


def fairseq_preprocess(folder, dest, *arguments):
    files = ["--only-source", "--trainpref", folder / "train", "--validpref", folder / "test", "--destdir", dest]
    parser = options.get_preprocessing_parser()
    preprocess.main(parser.parse_args([str(part) for part in [*files, *arguments]]))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("how", [*MADE, *CHANGED])
def test_dictionaries_of_fairseq(tmp_path, level, how):
    encode = LEVELS[level]
    (tmp_path / "train").write_text("".join(f"{encode(line)}\n" for line in TRAIN))
    (tmp_path / "test").write_text(encode(TEST) + "\n")
    (tmp_path / "text").write_text(TEST)
    data = tmp_path / "data"
    fairseq_preprocess(tmp_path, data, *MADE.get(how, "").split())
    if how in CHANGED:
        lines = CHANGED[how]((data / "dict.txt").read_text().splitlines())
        (tmp_path / "dict.txt").write_text("".join(f"{line}\n" for line in lines))
        data = tmp_path / "changed"
        fairseq_preprocess(tmp_path, data, "--srcdict", tmp_path / "dict.txt")
        # fairseq rewrites it without the marks on its lines, so users keep the file they gave.
        (data / "dict.txt").write_bytes((tmp_path / "dict.txt").read_bytes())
    dictionary = Dictionary.load(str(data / "dict.txt"))

    # The task of a training opens it.
    task = MemoryCachingLMTask.setup_task(MemoryCachingLMConfig(data=str(data)))
    assert task.dictionary.symbols == dictionary.symbols and task.dictionary.indices == dictionary.indices
    task.load_dataset("valid")
    stream = task.dataset("valid").corpus.stream
    theirs = stream.read(0, len(stream))
    assert dictionary.pad() not in theirs

    # Text is prepared with it, to the same symbols.
    scripts.load("text").main(
        [
            "--level",
            level,
            "--dest",
            str(tmp_path / "made"),
            "--dict",
            str(data / "dict.txt"),
            "--test",
            str(tmp_path / "text"),
        ]
    )
    assert (tmp_path / "made" / "dict.txt").read_bytes() == (data / "dict.txt").read_bytes()
    ours = np.fromfile(tmp_path / "made" / "test.bin", dtype=np.uint16)
    if level != "words":
        ours = np.append(ours, dictionary.eos())
    assert ours.tolist() == theirs.tolist()
    # An <unk> of the text itself does not count as unknown. All others do.
    unknown = read_manifest(tmp_path / "made").splits["test"].unknown
    written = level == "words"
    assert unknown == (ours == dictionary.unk()).sum() - written
    scripts.load("text").main(["--verify", str(tmp_path / "made")])
