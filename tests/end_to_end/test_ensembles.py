"""``fairseq-eval-lm`` with several models, each with its own memory."""

import math
import shutil
import sys

import commands
import numpy as np
import pytest
from fairseq_cli import eval_lm as eval_lm_command
from scoring import exact_loss, reader_logprobs, split_tokens

from fairseq_expire.fairseq_patches.loading_models import split_names


@pytest.fixture(scope="session")
def other(data_bin, tmp_path_factory):
    """A checkpoint of another architecture, with another memory."""
    folder = tmp_path_factory.mktemp("other")
    commands.train(data_bin, folder, "--disable-validation", arch="transformer_xl_lm", updates=30)
    return folder / "checkpoint_last.pt"


def test_probabilities_are_averaged(data_bin, checkpoint, other):
    tokens, previous = split_tokens(data_bin, "test")
    each = [reader_logprobs(path, previous)[np.arange(len(tokens)), tokens] for path in (checkpoint, other)]
    expected = -np.log2((np.exp(each[0]) + np.exp(each[1])) / 2).mean()
    alone = [-scores.mean() / math.log(2) for scores in each]
    assert abs(alone[0] - alone[1]) > 1e-3
    assert exact_loss(data_bin, f"{other}:{checkpoint}", "--tokens-per-sample", "9") == pytest.approx(
        expected, abs=1e-6
    )


def test_the_one_that_is_missing_is_named(data_bin, checkpoint, monkeypatch):
    arguments = ["fairseq-eval-lm", data_bin, "--path", f"{checkpoint}:nowhere.pt", "--user-dir", commands.USER_DIR,
                 "--task", "memory_caching_lm", "--gen-subset", "test", "--cpu"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", [str(argument) for argument in arguments])
    with pytest.raises(OSError, match=r"Model file not found: nowhere.pt"):
        eval_lm_command.cli_main()


def test_a_file_that_exists_is_one_file(checkpoint, tmp_path):
    odd = shutil.copy(checkpoint, tmp_path / "best:ever.pt")
    assert split_names([str(odd), "a.pt:b.pt", "c.pt"]) == [str(odd), "a.pt", "b.pt", "c.pt"]
