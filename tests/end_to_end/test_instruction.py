"""The instruction task with the real commands: ``answer_error`` is that of an independent reader of the file."""

import re

import commands
import numpy as np
import pytest
import scripts
import torch

from fairseq_expire import load


def reader_error(data, path):
    """The share of the answers of test with a token that is not the likeliest one, in percent, read in one piece."""
    model = load(path, data=data)
    ids = np.fromfile(data / "test.bin", dtype=np.uint16).astype(np.int64)
    inputs = torch.from_numpy(np.concatenate([[model.tokenizer.eos], ids[:-1]]))
    with torch.no_grad():
        right = model.model(inputs[None]).log_probs[0].argmax(dim=1).numpy() == ids
    answers = np.load(data / "test.answers.npy")
    return 100 * np.mean([not right[start:stop].all() for start, stop in answers.tolist()]), len(answers)


@pytest.mark.parametrize("level", ["words", "subword"])
def test_answer_error(tmp_path, level):
    data, checkpoints = tmp_path / "data", tmp_path / "checkpoints"
    line = f"--dest {data} --level {level} --episodes 300 --mean-distractors 1 --queue 2 --workers 1"
    scripts.load("instruction").main(line.split())
    output = commands.train(data, checkpoints, "--best-checkpoint-metric", "answer_error", updates=120)
    # It has not learned to remember, nor to say names.
    assert commands.logged(output, "valid")[-1]["valid_answer_error"] == 100
    # It has learned how answers end, sometimes.
    path = checkpoints / "checkpoint_last.pt"
    answers = np.load(data / "test.answers.npy")
    answers[:, 0] = answers[:, 1] - np.arange(len(answers)) % 6 - 1
    np.save(data / "test.answers.npy", answers)
    expected, number = reader_error(data, path)
    assert number == 30 and 0 < expected < 100
    assert commands.validate(data, path, "--batch-size", "1")["answer_error"] == pytest.approx(expected, abs=0.01)
    found = re.search(r"test: answer error ([\d.]+) % of (\d+) answers", commands.score(data, path))
    assert float(found[1]) == pytest.approx(expected, abs=0.01) and int(found[2]) == number
