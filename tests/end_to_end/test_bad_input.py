"""One clear error each, before work starts."""

import shutil
import sys

import commands
import numpy as np
import pytest
import torch
from fairseq.data.indexed_dataset import MMapIndexedDatasetBuilder
from fairseq_cli import eval_lm as eval_lm_command
from fairseq_cli import train as train_command


@pytest.fixture
def train(data_bin, tmp_path, monkeypatch):
    """``fairseq-train`` in this process: starting one for each wrong option would take minutes."""

    def call(*options, data=data_bin, arch="expire_span_lm", model=commands.MODEL):
        spans = commands.SPANS["expire_span_lm"] if arch.startswith("expire") else ["--max-span", "64"]
        arguments = [
            "fairseq-train", data, "--user-dir", commands.USER_DIR, "--task", "memory_caching_lm", "--arch", arch, *model,
            *spans, "--criterion", "expire_span_loss", "--tokens-per-sample", "32", "--batch-size", "8", "--optimizer",
            "adam", "--max-update", "1", "--cpu", "--save-dir", tmp_path / "save", "--num-workers", "0", *options,
        ]  # fmt: skip
        monkeypatch.setattr(sys, "argv", [str(argument) for argument in arguments])
        train_command.cli_main()

    return call


@pytest.fixture
def score(data_bin, checkpoint, monkeypatch):
    def call(*options, data=data_bin, path=checkpoint):
        arguments = [
            "fairseq-eval-lm", data, "--path", path, "--user-dir", commands.USER_DIR, "--task", "memory_caching_lm",
            "--gen-subset", "test", "--cpu", *options,
        ]  # fmt: skip
        monkeypatch.setattr(sys, "argv", [str(argument) for argument in arguments])
        eval_lm_command.cli_main()

    return call


@pytest.mark.parametrize(
    "options, words",
    [
        (["--decoder-attention-heads", "3"], "3 heads and width 32"),
        (["--tokens-per-sample", "0"], "--tokens-per-sample .*got 0"),
        (["--max-span", "0"], "max_span .*got 0"),
        (["--span-ramp", "-1"], "ramp .*got -1"),
        (["--position-range", "0"], "position_range must be at least 1, got 0"),
        (["--span-init", "256"], "less than max_span = 256, got 256"),
        (["--span-init", "0"], "span_init .*got 0"),
        (["--batch-size", "70000"], "60000 tokens, fewer than the 70000 rows"),
        (["--batch-size-valid", "5000"], "4001 tokens, fewer than the 5000 rows"),
        (["--max-tokens", "100"], "8 rows x 32 tokens .* exceeds --max-tokens 100"),
        (["--expire-loss-weight", "-1"], "--expire-loss-weight .*got -1"),
    ],
    ids=lambda value: value[0][2:] if isinstance(value, list) else "",
)
def test_options(train, options, words):
    with pytest.raises(ValueError, match=words):
        train(*options)


def copied(data_bin, tmp_path):
    return shutil.copytree(data_bin, tmp_path / "data")


def test_no_dictionary(train, data_bin, tmp_path):
    data = copied(data_bin, tmp_path)
    (data / "dict.txt").unlink()
    with pytest.raises(FileNotFoundError, match="no dict.txt in .*data"):
        train(data=data)


def test_no_split(train, score, data_bin, tmp_path):
    data = copied(data_bin, tmp_path)
    for name in ("train.idx", "test.bin"):
        (data / name).unlink()
    with pytest.raises(FileNotFoundError, match="no split 'train'"):
        train(data=data)
    with pytest.raises(FileNotFoundError, match="no split 'test'"):
        score(data=data)


def test_dictionary_of_other_data(score, data_bin, tmp_path):
    data = copied(data_bin, tmp_path)
    lines = (data / "dict.txt").read_text().splitlines()
    (data / "dict.txt").write_text("\n".join(lines[::-1]) + "\n")
    with pytest.raises(ValueError, match="dict.txt is not the one"):
        score(data=data)
    # fairseq-preprocess leaves no manifest: then the checkpoint itself knows its dictionary.
    (data / "manifest.json").unlink()
    with pytest.raises(ValueError, match="trained with another dictionary"):
        score(data=data)


def test_nothing_to_score(score, data_bin, tmp_path):
    data = copied(data_bin, tmp_path)
    builder = MMapIndexedDatasetBuilder(str(data / "test.bin"), dtype=np.uint16)
    builder.finalize(str(data / "test.idx"))
    with pytest.raises(ValueError, match="test.bin holds no token"):
        score(data=data)


def test_token_outside_the_dictionary(score, data_bin, tmp_path):
    data = copied(data_bin, tmp_path)
    builder = MMapIndexedDatasetBuilder(str(data / "test.bin"), dtype=np.uint16)
    builder.add_item(torch.tensor([5, 6, 9999]))
    builder.finalize(str(data / "test.idx"))
    with pytest.raises(ValueError, match="token 2 of .*test.bin is 9999"):
        score(data=data)


def test_token_outside_the_dictionary_far_into_the_text(train, data_bin, tmp_path):
    data = copied(data_bin, tmp_path)
    tokens = np.fromfile(data / "train.bin", dtype=np.uint16)
    tokens[50000] = 9999
    tokens.tofile(data / "train.bin")
    with pytest.raises(ValueError, match="token 50000 of .*train.bin is 9999"):
        train(data=data)
    assert not (tmp_path / "save" / "checkpoint_last.pt").exists()


def test_folders_with_different_dictionaries(train, data_bin, tmp_path):
    data = copied(data_bin, tmp_path)
    lines = (data / "dict.txt").read_text().splitlines()
    (data / "dict.txt").write_text("\n".join(lines[::-1]) + "\n")
    (data / "manifest.json").unlink()
    with pytest.raises(ValueError, match="data/dict.txt differs from"):
        train(data=f"{data_bin}:{data}")


def test_position_range_that_the_checkpoint_cannot_serve(score):
    with pytest.raises(ValueError, match="positions for 32 steps, --position-range .* asks for 64.*give --position-range 32"):
        score("--model-overrides", "{'position_range': 64}")


def test_context_window(score):
    with pytest.raises(ValueError, match="--context-window"):
        score("--context-window", "8")


def test_checkpoint_of_another_architecture(score, data_bin, tmp_path):
    save = tmp_path / "transformer"
    commands.run(
        commands.tool("fairseq-train"), data_bin, "--task", "language_modeling", "--arch", "transformer_lm", *commands.MODEL,
        "--tokens-per-sample", "32", "--batch-size", "2", "--optimizer", "adam", "--max-update", "1", "--cpu",
        "--save-dir", save, "--disable-validation",
    )  # fmt: skip
    with pytest.raises(ValueError, match="memory, which TransformerLanguageModel does not have"):
        score(path=save / "checkpoint_last.pt")


def test_the_command_ends_with_the_sentence(data_bin, tmp_path):
    output = commands.train(data_bin, tmp_path, "--span-init", "999", code=1)
    assert "ValueError: span_init is the span of every state before training" in output.splitlines()[-1]
