"""``fairseq-interactive``, ``fairseq-generate`` and the hub interface against an independent reader."""

import math
import re
import sys

import commands
import numpy as np
import pytest
import scripts
from commands import hypotheses
from fairseq.data import Dictionary
from fairseq_cli import eval_lm as eval_lm_command
from fairseq_cli import generate as generate_command
from fairseq_cli import interactive as interactive_command
from scoring import reader_logprobs

from fairseq_expire.models.expire_span_lm import ExpireSpanLanguageModel
from fairseq_expire.tasks.memory_caching_lm import MemoryCachingLMConfig, MemoryCachingLMTask
from fairseq_expire.tokenizers.bound import BoundTokenizer

# Longer than the longest span of the model (256), and without a line end, which would end the prompt.
LONG = "def _metavar_formatter(self, action, default_metavar): result = action.metavar or default; " * 4


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs a command of fairseq in this process. Returns its output."""

    def call(main, *arguments):
        monkeypatch.setattr(sys, "argv", ["fairseq", *map(str, arguments)])
        main()
        return capsys.readouterr().out

    return call


OURS = ["--user-dir", commands.USER_DIR, "--task", "memory_caching_lm", "--cpu", "--num-workers", "0"]


@pytest.fixture
def interactive(call, data_bin, checkpoint, tmp_path):
    def interactive(lines, *options, path=checkpoint):
        (tmp_path / "lines").write_text("".join(f"{line}\n" for line in lines))
        return call(
            interactive_command.cli_main, data_bin, "--path", path, *OURS, "--input", tmp_path / "lines",
            "--max-len-a", "1", "--max-len-b", "40", *options,
        )  # fmt: skip

    return interactive


@pytest.fixture(scope="module")
def items(data_bin, tmp_path_factory):
    """A data-bin of three files with the dictionary of the model."""
    folder = tmp_path_factory.mktemp("items")
    for name, text in {"a": LONG, "b": "import os\n\ndef main():\n", "c": "class"}.items():
        (folder / name).write_text(text)
    files = [str(folder / name) for name in "abc"]
    dictionary = str(data_bin / "dict.txt")
    scripts.load("text").main(
        ["--level", "bytes", "--dest", str(folder / "bin"), "--dict", dictionary, "--append-eos", "--test", *files]
    )
    return folder / "bin"


@pytest.fixture
def generate(call, checkpoint, items):
    def generate(*options, data=items):
        return call(generate_command.cli_main, data, "--path", checkpoint, *OURS, *options)

    return generate


def read_again(data, path, names):
    """Log-probabilities [N + 1, V] to base 2, and ids [N + 1] of the symbols and of the ``</s>`` that follows them."""
    dictionary = Dictionary.load(str(data / "dict.txt"))
    tokens = np.array([*map(dictionary.index, names), dictionary.eos()])
    return reader_logprobs(path, np.concatenate([tokens[-1:], tokens[:-1]])) / math.log(2), tokens


def test_greedy_is_the_likeliest_after_all_that_came_before(interactive, data_bin, checkpoint):
    """The independent reader keeps all states and reads the whole text at once. Many memories of this model expire."""
    prompts = [LONG, "import"]
    output = interactive(prompts, "--beam", "1", "--max-len-b", "120", "--tokens-per-sample", "50")
    for number, prompt in enumerate(prompts):
        (score, names, scores) = hypotheses(output)[number][0]
        logprobs, tokens = read_again(data_bin, checkpoint, names)
        given = len(prompt.strip())
        assert len(names) == given + 1 + 120
        assert BoundTokenizer.load(data_bin).decode(tokens[:given].tolist()) == prompt.strip()
        assert scores == pytest.approx(logprobs[np.arange(len(tokens)), tokens], abs=2e-4)
        assert score == pytest.approx(np.mean(scores), abs=1e-4)
        assert tokens[given:-1].tolist() == logprobs[given:-1].argmax(-1).tolist()


def test_a_file_of_prompts_and_lines_of_prompts_go_on_alike(interactive, generate, items, data_bin):
    """The items of one batch have different lengths. They are printed as text."""
    options = ["--beam", "3", "--nbest", "2", "--max-len-a", "1", "--max-len-b", "12"]
    output = generate("--sample-break-mode", "eos", *options)
    assert re.search(r"^S-2\tclass$", output, re.MULTILINE)
    by_item, by_line = hypotheses(output), hypotheses(interactive([LONG.strip(), "class"], *options))
    assert set(by_item) == {0, 1, 2} and all(len(found) == 2 for found in by_item.values())
    for line, item in ((1, 2),):
        for mine, other in zip(by_line[line], by_item[item]):
            assert mine[1] == other[1]
            assert mine[2] == pytest.approx(other[2], abs=2e-4) and mine[0] == pytest.approx(other[0], abs=1e-4)
    codec, dictionary = BoundTokenizer.load(data_bin), Dictionary.load(str(data_bin / "dict.txt"))
    text = codec.decode(map(dictionary.index, by_item[1][0][1]))
    assert text.startswith("import os\n\ndef main():\n")
    assert f"\t{text}\nP-1" in output


def test_prefixes_of_items(generate):
    """The first tokens of each item are the prompt. The whole item is printed as the reference."""
    output = generate("--sample-break-mode", "eos", "--prefix-size", "7", "--beam", "1", "--max-len-b", "20")
    names, scores = ([found[0][part] for _, found in sorted(hypotheses(output).items())] for part in (1, 2))
    assert "".join(names[0]).startswith("def\u2581_me") and "".join(names[1]).startswith("import\u2581")
    # The shortest item ends before that and is continued where it ends.
    assert "".join(names[2]).startswith("class") and len(names[2]) == len(scores[2]) - 1 == 20
    assert re.search(r"^T-2\tclass$", output, re.MULTILINE)


def test_generation_from_a_stream_and_streams_of_items(generate, data_bin, checkpoint, call):
    with pytest.raises(ValueError, match=r"fairseq-generate goes on from the items .*give --sample-break-mode eos"):
        generate("--batch-size", "2")
    with pytest.raises(
        ValueError, match=r"fairseq-eval-lm reads a split as one stream.*leave out --sample-break-mode eos"
    ):
        call(eval_lm_command.cli_main, data_bin, "--path", checkpoint, *OURS, "--sample-break-mode", "eos")
    task = MemoryCachingLMTask.setup_task(MemoryCachingLMConfig(data=str(data_bin), sample_break_mode="eos"))
    with pytest.raises(ValueError, match="fairseq-validate reads a split as one stream"):
        task.valid_step({}, None, None)
    with pytest.raises(ValueError, match="fairseq-train reads a split as one stream"):
        # The call of fairseq's trainer.
        task.load_dataset("train", epoch=1, combine=True, data_selector=None)


def test_prompts_without_room(generate, interactive):
    with pytest.raises(
        ValueError, match="a prompt has 364 tokens, and --max-len-a 0 with --max-len-b 200 allows 200 in all"
    ):
        generate("--sample-break-mode", "eos")
    with pytest.raises(ValueError, match="--constraints: "):
        interactive(["a\tb"], "--constraints")


def test_samples_follow_the_seed_and_are_utf8_when_asked(interactive):
    options = ["--sampling", "--sampling-topk", "40", "--temperature", "1.2", "--beam", "3", "--nbest", "3"]
    first, again, other = (hypotheses(interactive(["def "], *options, "--utf8", "--seed", seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert len({tuple(names) for _, names, _ in first[0]}) == 3


def test_scores_of_reference_texts(generate, items, checkpoint):
    """``--score-reference`` prints the scores of the independent reader, including that of ``</s>``."""
    output = generate("--sample-break-mode", "eos", "--score-reference", "--tokens-per-sample", "30")
    for found in hypotheses(output).values():
        logprobs, tokens = read_again(items, checkpoint, found[0][1])
        assert found[0][2] == pytest.approx(logprobs[np.arange(len(tokens)), tokens], abs=2e-4)


@pytest.fixture(scope="module")
def hub(data_bin, checkpoint):
    return ExpireSpanLanguageModel.from_pretrained(
        str(checkpoint.parent), checkpoint.name, data_name_or_path=str(data_bin)
    )


def test_hub_scores_as_the_reader(hub, data_bin, checkpoint, corpus):
    """On the whole test split, these are also the scores of ``fairseq-eval-lm`` (test_scoring.py)."""
    text = (corpus / "test.txt").read_text()
    assert hub.decode(hub.encode(LONG + "\n\n  x")) == LONG + "\n\n  x"
    scored = hub.score(text)
    tokens = np.array(BoundTokenizer.load(data_bin).encode(text))
    assert scored["tokens"].tolist() == tokens.tolist()
    logprobs = reader_logprobs(checkpoint, np.concatenate([[2], tokens[:-1]]))
    expected = logprobs[np.arange(len(tokens)), tokens]
    assert scored["positional_scores"].numpy() == pytest.approx(expected, abs=2e-4)
    assert scored["score"].item() == pytest.approx(expected.mean(), abs=1e-6)
    both = hub.score(["import", text])
    assert both[1]["score"].item() == pytest.approx(expected.mean(), abs=1e-6) and len(both[0]["tokens"]) == 6


def test_hub_samples_and_generates(hub, interactive):
    beam = hub.generate(hub.encode("import"), beam=3, max_len_a=1, max_len_b=40)
    printed = hypotheses(interactive(["import"], "--beam", "3", "--nbest", "3"))[0]
    assert [hub.string(hypothesis["tokens"]).split() for hypothesis in beam] == [names for _, names, _ in printed]
    texts = hub.sample(["import", "class\n\n"], beam=1, sampling=True, sampling_topp=0.9, max_len_a=1, max_len_b=30)
    assert texts[0].startswith("import") and texts[1].startswith("class\n\n") and all(len(text) > 20 for text in texts)


def test_ensembles(interactive, checkpoint, data_bin):
    """A model together with itself writes what it writes alone."""
    options = ["--beam", "2", "--max-len-b", "10"]
    both = interactive(["import"], *options, path=f"{checkpoint}:{checkpoint}")
    for mine, alone in zip(hypotheses(both)[0], hypotheses(interactive(["import"], *options))[0]):
        assert mine[1] == alone[1] and mine[2] == pytest.approx(alone[2], abs=2e-4)
    together = ExpireSpanLanguageModel.from_pretrained(
        str(checkpoint.parent), f"{checkpoint.name}:{checkpoint.name}", data_name_or_path=str(data_bin)
    )
    assert len(together.models) == 2 and together.score("import")["score"] < 0
