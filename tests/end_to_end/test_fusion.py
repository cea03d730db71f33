"""``fairseq-generate --lm-path``: a translation model whose scores are added to those of a language model of ours."""

import math
import re
import shutil
import sys

import commands
import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils
from fairseq_cli import generate as generate_command
from fairseq_cli import preprocess as preprocess_command
from fairseq_cli import train as train_command
from scoring import reader_logprobs

SIZES = [
    f"--{side}-{name}" for side in ("encoder", "decoder") for name in ("layers=1", "embed-dim=16", "ffn-embed-dim=16",
                                                                       "attention-heads=2")
]  # fmt: skip


@pytest.fixture(scope="module")
def call():
    """Runs a command of fairseq in this process."""

    def call(main, *arguments):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["fairseq", *map(str, arguments)])
            main()

    return call


@pytest.fixture(scope="module")
def translations(corpus, call, tmp_path_factory):
    """A data-bin that pairs lines with their words in reverse order, and a translation model trained on it briefly."""
    folder = tmp_path_factory.mktemp("translations")
    lines = [line.split()[:8] for line in (corpus / "train.txt").read_text().splitlines() if len(line.split()) > 2]
    for split, part in (("train", lines[:300]), ("test", lines[300:305])):
        (folder / f"{split}.up").write_text("".join(" ".join(line) + "\n" for line in part))
        (folder / f"{split}.down").write_text("".join(" ".join(line[::-1]) + "\n" for line in part))
    call(
        preprocess_command.cli_main, "-s", "up", "-t", "down", "--trainpref", folder / "train", "--testpref",
        folder / "test", "--nwordstgt", "120", "--nwordssrc", "90", "--destdir", folder / "data",
    )  # fmt: skip
    call(
        train_command.cli_main, folder / "data", "--task", "translation", "--arch", "transformer", *SIZES,
        "--max-tokens", "400", "--optimizer", "adam", "--lr", "0.01", "--max-update", "15", "--cpu",
        "--disable-validation", "--save-dir", folder / "mt", "--num-workers", "0",
    )  # fmt: skip
    return folder


def train_language_model(call, text, dictionary, folder):
    call(
        preprocess_command.cli_main, "--only-source", "--trainpref", text, "--srcdict", dictionary, "--destdir",
        folder / "data",
    )  # fmt: skip
    call(
        train_command.cli_main, folder / "data", "--user-dir", commands.USER_DIR, "--task", "memory_caching_lm",
        "--arch", "expire_span_lm", *commands.MODEL, "--max-span", "6", "--span-ramp", "2", "--span-init", "3",
        "--tokens-per-sample", "8", "--batch-size", "4", "--criterion", "expire_span_loss", "--optimizer", "adam",
        "--lr", "0.01", "--max-update", "15", "--cpu", "--disable-validation", "--save-dir", folder / "lm",
        "--num-workers", "0",
    )  # fmt: skip
    return folder / "lm" / "checkpoint_last.pt"


@pytest.fixture(scope="module")
def language_model(translations, call, tmp_path_factory):
    """The checkpoint of a language model of the target language."""
    dictionary = translations / "data" / "dict.down.txt"
    return train_language_model(call, translations / "train.down", dictionary, tmp_path_factory.mktemp("target"))


@pytest.fixture
def generate(translations, call, capsys):
    def generate(data, *options):
        call(
            generate_command.cli_main, data, "--path", translations / "mt" / "checkpoint_last.pt", "--user-dir",
            commands.USER_DIR, "--cpu", "--beam", "3", "--max-len-b", "12",
            # With a larger number, this version of fairseq drops a last batch that is not a multiple of it.
            "--required-batch-size-multiple", "1", *options,
        )  # fmt: skip
        return capsys.readouterr().out

    return generate


def hypotheses(output):
    """Tokens and their scores, to base 2, by number of the line."""
    found = {}
    for line in output.splitlines():
        if re.match(r"[HP]-\d+\t", line):
            name, *_, content = line.split("\t")
            found.setdefault(int(name[2:]), []).append(content.split())
    return {number: (words, [float(score) for score in scores]) for number, (words, scores) in found.items()}


def test_scores_are_those_of_both(translations, language_model, generate, tmp_path):
    data = shutil.copytree(translations / "data", tmp_path / "data")
    shutil.copy(data / "dict.down.txt", data / "dict.txt")
    fused = hypotheses(generate(data, "--lm-path", language_model, "--lm-weight", "0.3"))
    alone = hypotheses(generate(data))
    assert len(fused) == len(alone) == 5
    assert fused != alone
    models, _, task = checkpoint_utils.load_model_ensemble_and_task(
        [str(translations / "mt" / "checkpoint_last.pt")], arg_overrides={"data": str(data)}
    )
    translator = models[0].eval()
    sources = (translations / "test.up").read_text().splitlines()
    for number, (words, scores) in fused.items():
        source = task.source_dictionary.encode_line(sources[number], add_if_not_exist=False).long()[None]
        # fairseq prints unknown words of the target in double brackets.
        target = task.target_dictionary.encode_line(" ".join(words).replace("<<unk>>", "<unk>"), add_if_not_exist=False)
        previous = torch.cat([target[-1:], target[:-1]]).long()
        with torch.no_grad():
            translated = translator(source, torch.tensor([source.size(1)]), previous[None])
        by_translation = translator.get_normalized_probs(translated, log_probs=True)[0].numpy()
        both = by_translation + 0.3 * reader_logprobs(language_model, previous.numpy())
        expected = both[np.arange(len(target)), target.numpy()] / math.log(2)
        assert scores == pytest.approx(expected, abs=2e-4)


def test_the_language_model_needs_the_dictionary_there(translations, language_model, generate):
    with pytest.raises(FileNotFoundError, match=r"for --lm-path, copy the one .*of dict.down.txt, dict.up.txt"):
        generate(translations / "data", "--lm-path", language_model, "--lm-weight", "0.3")


def test_the_dictionary_has_to_be_the_same(translations, language_model, call, generate, tmp_path):
    data = shutil.copytree(translations / "data", tmp_path / "data")
    lines = (data / "dict.down.txt").read_text().splitlines()
    (data / "dict.txt").write_text("\n".join(lines[::-1]) + "\n")
    with pytest.raises(ValueError, match=r"dict.txt has other symbols than dict.down.txt and dict.up.txt"):
        generate(data, "--lm-path", language_model, "--lm-weight", "0.3")
    shutil.copy(data / "dict.up.txt", data / "dict.txt")
    with pytest.raises(ValueError, match="checkpoint was trained with another dictionary"):
        generate(data, "--lm-path", language_model, "--lm-weight", "0.3")
