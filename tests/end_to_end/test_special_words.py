"""Names of fairseq's special symbols as words of a text.

In prompts and scores they are the same symbols as in prepared data. ``<pad>``, which no text may hold, is unknown.
"""

import sys

import commands
import pytest
import scripts
import torch
from commands import hypotheses
from fairseq_cli import generate as generate_command
from fairseq_cli import interactive as interactive_command
from small_checkpoints import prepare, write_checkpoint

import fairseq_expire
from fairseq_expire.models.expire_span_lm import ExpireSpanLanguageModel

WORDS = "the cat sat on a mat and the dog ran"
BOS, EOS, UNK = 0, 2, 3
# Lines, with the ids of their special symbols by place.
LINES = {
    "the <pad> cat": {1: UNK},
    "<pad>": {0: UNK},
    "<pad> the cat <pad> <pad>": {0: UNK, 3: UNK, 4: UNK},
    "the <unk> cat": {1: UNK},
    "the zebra cat": {1: UNK},
    "a </s> mat": {1: EOS},
    "a mat </s>": {2: EOS},
    "</s>": {0: EOS},
    "a </s> </s>": {1: EOS, 2: EOS},
    "<s> a": {0: BOS},
    "a <s>": {1: BOS},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("words"), "words", f"{WORDS}\n" * 9)


@pytest.fixture(scope="module")
def checkpoint(data, tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("model") / "model.pt", data)


@pytest.fixture(scope="module")
def model(checkpoint):
    return fairseq_expire.load(checkpoint)


@pytest.fixture(scope="module")
def hub(checkpoint, data):
    return ExpireSpanLanguageModel.from_pretrained(str(checkpoint.parent), checkpoint.name, data_name_or_path=str(data))


@pytest.fixture
def call(monkeypatch, capsys, checkpoint):
    """Runs a command of fairseq with greedy search for five more tokens. Returns its hypotheses."""

    def call(command, data, *given):
        ours = [
            "--user-dir",
            commands.USER_DIR,
            "--task",
            "memory_caching_lm",
            "--cpu",
            "--num-workers",
            "0",
            "--beam",
            "1",
        ]
        length = ["--max-len-a", "1", "--max-len-b", "4"]
        monkeypatch.setattr(
            sys, "argv", list(map(str, ["fairseq", data, "--path", checkpoint, *ours, *length, *given]))
        )
        command.cli_main()
        return hypotheses(capsys.readouterr().out)

    return call


def ids_of(model, line):
    ids = [model.tokenizer.dictionary.index(word) for word in line.split()]
    for place, index in LINES[line].items():
        ids[place] = index
    return ids


def bits(model, ids):
    """Bits of each token [N]."""
    with torch.no_grad():
        log_probs = model.model(torch.tensor([[EOS, *ids[:-1]]])).log_probs[0]
    return (-log_probs[torch.arange(len(ids)), ids] / torch.log(torch.tensor(2.0))).tolist()


@pytest.mark.parametrize("line", LINES)
def test_scores(line, model, hub):
    ids = ids_of(model, line)
    expected = bits(model, ids)
    scored = hub.score(["mat on", line, "the"])[1]
    assert scored["tokens"].tolist() == ids and hub.encode(line).tolist() == [*ids, EOS]
    assert (-scored["positional_scores"] / torch.log(torch.tensor(2.0))).tolist() == pytest.approx(expected, rel=1e-4)
    score = model.score(line)
    assert score.ids.tolist() == ids and score.token_bits.tolist() == pytest.approx(expected, rel=1e-4)


def greedy(model, ids, more=5):
    """A prompt and its likeliest continuation, found by reading the whole text again for each token."""
    ids, written = list(ids), []
    while len(written) < more:
        with torch.no_grad():
            scores = model.model(torch.tensor([[EOS, *ids, *written]])).log_probs[0, -1]
        # fairseq never writes <pad>.
        scores[1] = -torch.inf
        written.append(int(scores.argmax()))
        if written[-1] == EOS:
            return [*ids, *written]
    return [*ids, *written, EOS]


def assert_goes_on(found, model, ids):
    """Compares the scores of all tokens, and the names of those that are printed."""
    tokens = greedy(model, ids)
    ((_, names, scores),) = found
    symbols = model.tokenizer.symbols
    assert names == [symbols[index] for index in tokens if index not in (BOS, EOS)]
    assert scores == pytest.approx([-value for value in bits(model, tokens)], abs=2e-3)


def test_prompts(call, data, model, hub, tmp_path):
    (tmp_path / "lines").write_text("".join(f"{line}\n" for line in LINES))
    for size in ("1", "20"):
        found = call(
            interactive_command, data, "--input", tmp_path / "lines", "--buffer-size", size, "--batch-size", size
        )
        for number, line in enumerate(LINES):
            assert_goes_on(found[number], model, ids_of(model, line))
    for line in LINES:
        (best,) = hub.generate(hub.encode(line), beam=1, max_len_a=1, max_len_b=4)
        assert best["tokens"].tolist() == greedy(model, ids_of(model, line))


def test_rows_that_are_padded_by_hand(hub):
    lines = [hub.encode(line) for line in ("the cat sat", "<pad> a", "mat </s>")]
    given = {"beam": 1, "max_len_a": 1, "max_len_b": 4}
    padded = hub.generate(torch.nn.utils.rnn.pad_sequence(lines, batch_first=True, padding_value=1), **given)
    for (one,), (other,) in zip(padded, hub.generate(lines, **given)):
        assert one["tokens"].tolist() == other["tokens"].tolist() and one["score"] == pytest.approx(
            other["score"].item()
        )


def test_items(call, data, model, tmp_path):
    """Items of a split, whose lines end in one more ``</s>``, and beginnings of items."""
    (tmp_path / "lines").write_text("".join(f"{line}\n" for line in LINES))
    scripts.load("text").main(
        [
            "--level",
            "words",
            "--dest",
            str(tmp_path / "bin"),
            "--dict",
            str(data / "dict.txt"),
            "--test",
            str(tmp_path / "lines"),
        ]
    )
    items = ["--sample-break-mode", "eos", "--gen-subset", "test"]
    whole = call(generate_command, tmp_path / "bin", *items)
    begun = call(generate_command, tmp_path / "bin", *items, "--prefix-size", "2")
    reference = call(generate_command, tmp_path / "bin", *items, "--score-reference")
    for number, line in enumerate(LINES):
        ids = ids_of(model, line)
        assert_goes_on(whole[number], model, ids)
        assert_goes_on(begun[number], model, ids[:2])
        ((_, _, scores),) = reference[number]
        assert scores == pytest.approx([-value for value in bits(model, [*ids, EOS])], abs=2e-3)
