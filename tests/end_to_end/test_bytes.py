"""fairseq's commands with bytes that are not UTF-8, and with any text under an ASCII locale."""

import inspect
import os
import re
import textwrap

import commands
import pytest
import scripts
from commands import hypotheses
from scoring import exact_loss
from small_checkpoints import prepare, write_checkpoint

import fairseq_expire
from fairseq_expire.models.expire_span_lm import ExpireSpanLanguageModel

# All lines differ. None ends in white space, which fairseq strips.
LINES = [
    b"first",
    "caf\u00e9 \u4e2d \U0001f600".encode(),
    b"bad \xff\xfe x",
    bytes(range(128, 256)),
    b"\xe4\xb8",
    b"\xed\xa0\x80 half",
    b"last \xc3",
]
NOT_UTF8 = [3, 4, 5, 6, 7]
TEXT = inspect.getsource(textwrap) + "the caf\u00e9 of \u4e2d\u6587 \U0001f600 ran: " * 40 + "\n"
ASCII = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
POSIX = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
LEVELS = {"bytes": [], "chars": [], "words": [], "subword": ["--vocab-size", "400"]}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Data-bin and checkpoint by level."""
    found = {}
    for level, options in LEVELS.items():
        folder = tmp_path_factory.mktemp(level)
        text = bytes(range(256)) * 4 + TEXT.encode() if level == "bytes" else TEXT
        data = prepare(folder, level, text, *options)
        found[level] = data, write_checkpoint(folder / "model.pt", data)
    return found


def go_on(model, *given, lines=LINES, environment=None, command="fairseq-interactive", code=0):
    """Runs ``fairseq-interactive``, or another command, on lines of bytes. Returns its output as bytes."""
    data, path = model
    whole = [
        commands.tool(command), data, "--path", path, "--user-dir", commands.USER_DIR, "--task", "memory_caching_lm",
        "--cpu", "--beam", "1", "--max-len-a", "1", "--max-len-b", "3", *given,
    ]  # fmt: skip
    names = {"LC_ALL", "LANG", *ASCII}
    clean = {name: value for name, value in os.environ.items() if name not in names}
    env = {**clean, "PYTHONPATH": str(commands.ROOT), "CUDA_VISIBLE_DEVICES": "", **(environment or {})}
    done = commands.result(*whole, given=b"".join(line + b"\n" for line in lines), env=env)
    assert done.returncode == code, (done.stdout + done.stderr).decode("utf-8", "replace")[-4000:]
    assert b"Logging error" not in done.stderr
    return done.stdout + done.stderr


def prompts_of(output, tokenizer):
    """Ids of each prompt and its continuation by number, from the printed names of symbols."""
    found = hypotheses(output.decode("utf-8"))
    return {
        number: [tokenizer.dictionary.index(name) for name in hypothesis[0][1]] for number, hypothesis in found.items()
    }


@pytest.mark.parametrize("environment", [{"LC_ALL": "C.UTF-8"}, ASCII, POSIX], ids=["utf-8", "ascii", "posix"])
@pytest.mark.parametrize("source", ["stdin", "file"])
def test_a_byte_model_reads_lines_as_they_are(models, source, environment, tmp_path):
    tokenizer = fairseq_expire.load(models["bytes"][1]).tokenizer
    given = ["--buffer-size", "3", "--batch-size", "3"]
    if source == "file":
        (tmp_path / "lines").write_bytes(b"".join(line + b"\n" for line in LINES))
        given += ["--input", tmp_path / "lines"]
    output = go_on(models["bytes"], *given, environment=environment)
    found = prompts_of(output, tokenizer)
    assert list(found) == list(range(len(LINES))) and b"not UTF-8" not in output
    for number, line in enumerate(LINES):
        assert found[number][: len(line)] == tokenizer.encode(line)
        # In the printed text, bytes that are not UTF-8 appear as U+FFFD. The names above tell which bytes they are.
        shown = re.search(rf"^D-{number}\t[^\t]+\t(.*)$".encode(), output, re.MULTILINE)[1].decode("utf-8")
        assert shown.startswith(line.decode("utf-8", "replace").rstrip("\ufffd"))


@pytest.mark.parametrize("level, environment", [("chars", ASCII), ("words", POSIX), ("subword", {"LC_ALL": "C.UTF-8"})])
def test_other_models_say_which_line_they_cannot_read_and_go_on(models, level, environment):
    tokenizer = fairseq_expire.load(models[level][1]).tokenizer
    output = go_on(models[level], "--buffer-size", "2", environment=environment)
    found = prompts_of(output, tokenizer)
    assert list(found) == list(range(len(LINES)))
    said = re.findall(
        rb"WARNING.*line (\d+) is not UTF-8 at its byte \d+ .*: it is read with U\+FFFD there; convert", output
    )
    assert list(map(int, said)) == NOT_UTF8
    for number, line in enumerate(LINES):
        expected = tokenizer.encode(line.decode("utf-8", "replace"))
        assert found[number][: len(expected)] == expected


@pytest.mark.parametrize("level", ["bytes", "chars"])
def test_items_and_results_in_a_file(models, level, tmp_path):
    data, path = models[level]
    texts = LINES if level == "bytes" else [line for number, line in enumerate(LINES, 1) if number not in NOT_UTF8]
    for number, line in enumerate(texts):
        (tmp_path / f"{number}.txt").write_bytes(line)
    scripts.load("text").main(
        ["--level", level, "--dest", str(tmp_path / "bin"), "--dict", str(data / "dict.txt"), "--append-eos", "--test",
         *(str(tmp_path / f"{number}.txt") for number in range(len(texts)))]
    )  # fmt: skip
    items = ["--sample-break-mode", "eos", "--gen-subset", "test"]
    printed = go_on((tmp_path / "bin", path), *items, lines=[], environment=ASCII, command="fairseq-generate")
    go_on(
        (tmp_path / "bin", path),
        *items,
        "--results-path",
        tmp_path,
        lines=[],
        environment=ASCII,
        command="fairseq-generate",
    )
    tokenizer = fairseq_expire.load(path).tokenizer
    written = (tmp_path / "generate-test.txt").read_bytes()
    for output in (printed, written):
        found = prompts_of(output, tokenizer)
        for number, line in enumerate(texts):
            ids = tokenizer.encode(line)
            assert found[number][: len(ids)] == ids
            assert f"T-{number}\t{line.decode('utf-8', 'replace')}\n".encode() in output


def test_scores_of_bytes_are_those_of_fairseq_eval_lm(models, tmp_path):
    data, path = models["bytes"]
    content = b"".join(LINES) * 3
    (tmp_path / "test.txt").write_bytes(content)
    scripts.load("text").main(
        [
            "--level",
            "bytes",
            "--dest",
            str(tmp_path / "bin"),
            "--dict",
            str(data / "dict.txt"),
            "--test",
            str(tmp_path / "test.txt"),
        ]
    )
    model = fairseq_expire.load(path)
    expected = exact_loss(tmp_path / "bin", path)
    assert model.score(content).bits_per_token == pytest.approx(expected, abs=1e-6)
    assert model.score(content.decode("utf-8", "surrogateescape")).bits_per_token == pytest.approx(expected, abs=1e-6)


def hub(model):
    data, path = model
    return ExpireSpanLanguageModel.from_pretrained(str(path.parent), path.name, data_name_or_path=str(data))


def test_the_hub_takes_bytes(models):
    model, lm = fairseq_expire.load(models["bytes"][1]), hub(models["bytes"])
    for line in LINES:
        expected = model.score(line).token_bits
        for text in (line, line.decode("utf-8", "surrogateescape")):
            scores = lm.score(text)["positional_scores"].numpy()
            assert -scores / 0.6931472 == pytest.approx(expected, rel=1e-4)
    assert len(lm.score(LINES)) == len(lm.sample(LINES, max_len_a=1, max_len_b=2)) == len(LINES)
    assert lm.sample(b"a\xff", max_len_a=1, max_len_b=2).startswith("a\ufffd")
    for level in ("chars", "words", "subword"):
        with pytest.raises(ValueError, match=r"the text given.* not UTF-8 at "):
            hub(models[level]).score(b"a \xff")


@pytest.mark.parametrize("level", ["bytes", "chars", "subword"])
def test_names_of_special_symbols_are_text_like_any_other(models, level):
    """At the level of words they are special: see test_special_words.py."""
    lm, tokenizer = hub(models[level]), fairseq_expire.load(models[level][1]).tokenizer
    for text in ("<pad>", "a </s>", "<s> <unk> </s> <pad>"):
        ids = tokenizer.encode(text)
        assert lm.encode(text).tolist() == [*ids, 2] and not {0, 1, 2} & set(ids)
        assert lm.score(text)["tokens"].tolist() == ids
        assert lm.sample(text, max_len_a=1, max_len_b=2).startswith(tokenizer.decode(ids))
