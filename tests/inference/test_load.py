"""From a checkpoint of fairseq-train to an exported folder and to Python, and what is refused on the way."""

import ast
import json
import pickle
import re
import shutil
import sys

import commands
import numpy as np
import pytest
import torch
from building import build
from omegaconf import OmegaConf
from scoring import exact_loss, reader_loss

import fairseq_expire
from fairseq_expire import export

TEXT = "    def wrap(self, text):\n        return ['one', 'two']\n"


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "model"
    export.main([str(checkpoint), str(folder)])
    return folder


def test_score_is_that_of_fairseq_eval_lm(exported, data_bin, checkpoint, corpus):
    text = (corpus / "test.txt").read_bytes()
    score = fairseq_expire.load(exported).score(text)
    assert len(score.ids) == len(text)
    assert score.bits_per_token == pytest.approx(exact_loss(data_bin, checkpoint), abs=1e-6)
    assert score.bits_per_token == pytest.approx(reader_loss(data_bin, checkpoint, 1)[0], abs=1e-6)
    limited = fairseq_expire.load(exported, span_limit=20).score(text)
    assert limited.bits_per_token == pytest.approx(reader_loss(data_bin, checkpoint, 1, limit=20)[0], abs=1e-6)
    assert abs(limited.bits - score.bits) > 1e-3


def test_an_export_is_the_checkpoint(exported, checkpoint, data_bin):
    assert sorted(path.name for path in exported.iterdir()) == [
        "config.json",
        "dict.txt",
        "manifest.json",
        "model.safetensors",
    ]
    ours, theirs = fairseq_expire.load(exported), fairseq_expire.load(checkpoint)
    assert torch.equal(ours.fingerprint, theirs.fingerprint)
    assert np.array_equal(ours.score(TEXT).token_bits, theirs.score(TEXT).token_bits)
    limited = fairseq_expire.load(checkpoint, span_limit=7), fairseq_expire.load(exported, span_limit=7)
    assert np.array_equal(limited[0].score(TEXT).token_bits, limited[1].score(TEXT).token_bits)
    assert fairseq_expire.load(checkpoint, data=data_bin).codec.symbols == ours.codec.symbols
    doubled = fairseq_expire.load(exported, dtype=torch.float64)
    np.testing.assert_allclose(doubled.score(TEXT).token_bits, ours.score(TEXT).token_bits, rtol=1e-4)


def test_without_fairseq(exported, checkpoint):
    script = f"""
import sys
sys.modules["fairseq"] = None
import fairseq_expire
model = fairseq_expire.load({str(exported)!r})
print(repr(model.score({TEXT!r}).bits))
print(repr("".join(model.generate("def ", max_tokens=20, seed=1, utf8=True))))
stream = model.stream()
stream.feed("def ")
assert len(stream.next_distribution().log_probs) == len(model.codec.symbols)
theirs = {{"fairseq", "fairseq_cli", "omegaconf", "hydra"}}
assert not theirs & {{name.split(".")[0] for name, module in sys.modules.items() if module}}
try:
    fairseq_expire.load({str(checkpoint)!r})
except ImportError as error:
    print(error)
"""
    bits, written, refused = commands.run(sys.executable, "-W", "ignore", "-c", script).splitlines()
    model = fairseq_expire.load(exported)
    assert float(bits) == model.score(TEXT).bits
    assert ast.literal_eval(written) == "".join(model.generate("def ", max_tokens=20, seed=1, utf8=True))
    assert re.search(
        r"checkpoint_last.pt: a checkpoint, unlike an export .*, needs fairseq, which is not installed", refused
    )


LARGE = ["--adaptive-input", "--adaptive-input-cutoff", "20,40", "--adaptive-softmax-cutoff", "20,40"]
OTHERS = {
    "transformer_xl_lm": ["--max-span", "9", "--share-decoder-input-output-embed", "--decoder-normalize-before"],
    "adaptive_span_lm": [
        "--max-span",
        "20",
        "--span-ramp",
        "4",
        *LARGE,
        "--tie-adaptive-weights",
        "--tie-adaptive-proj",
    ],
    "compressive_transformer_lm": ["--max-span", "8", "--compression", "max", *LARGE],
    "expire_span_lm_tiny": ["--max-span", "99", "--span-init", "20"],
}


def write_checkpoint(folder, model, arch, options, data):
    """A checkpoint with what is read of one, of a model that was not trained."""
    cfg = {"model": {**OmegaConf.to_container(options, resolve=True), "_name": arch}, "task": {"data": str(data)}}
    torch.save({"args": None, "cfg": cfg, "model": model.state_dict()}, folder / "checkpoint.pt")
    return folder / "checkpoint.pt"


@pytest.mark.parametrize("arch", OTHERS)
def test_other_models_and_data_without_a_manifest(arch, tmp_path):
    """Words, as fairseq-preprocess makes them; weights that two parts share, and the other policies."""
    words = [f"w{number}" for number in range(96)]
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "dict.txt").write_text("".join(f"{word} 1\n" for word in words))
    torch.manual_seed(0)
    model, cfg = build(*commands.MODEL, *OTHERS[arch], arch=arch, with_cfg=True)
    model.eval()
    checkpoint = write_checkpoint(tmp_path, model, arch, cfg, tmp_path / "bin")
    export.main([str(checkpoint), str(tmp_path / "out")])
    loaded = fairseq_expire.load(tmp_path / "out")
    text = " ".join(words[n * n % 96] for n in range(40)) + "\n"
    ids = loaded.codec.encode(text)
    assert ids[-1] == 2 and 3 not in ids
    with torch.no_grad():
        log_probs = model.get_normalized_probs(model(torch.tensor([[2, *ids[:-1]]])), log_probs=True)
    expected = -log_probs[0, torch.arange(len(ids)), ids].sum().item() / np.log(2)
    assert loaded.score(text).bits == pytest.approx(expected, rel=1e-5)


class Code:
    def __reduce__(self):
        return print, ("this code ran",)


def damaged_checkpoints(path, folder):
    """Each with the words that are said of it."""
    state = torch.load(path, weights_only=True)
    options = state["cfg"]["model"]
    weights = {name: value for name, value in state["model"].items() if not name.endswith("fc1.bias")}
    older = {name.replace("decoder.model.", "decoder."): value for name, value in state["model"].items()}
    other = {**state["cfg"], "model": {**options, "dictionary_digest": 64 * "0"}}
    unknown = {**state["cfg"], "model": {**options, "_name": "no_such_lm"}}
    theirs = {**state["cfg"], "model": {**options, "_name": "transformer_lm"}}
    moved = {**state["cfg"], "task": {**state["cfg"]["task"], "data": str(folder / "gone")}}
    wrong = {**state["cfg"], "model": {**options, "decoder_layers": 1}}
    yield {**state, "extra_state": Code()}, ValueError, "which could run any code when it is loaded: it is refused"
    yield {**state, "model": weights}, ValueError, "the weights are not those of its options .*fc1.bias"
    yield {**state, "cfg": wrong}, ValueError, "the weights are not those of its options"
    yield {**state, "cfg": other}, ValueError, "trained with another dictionary than .*dict.txt"
    yield {**state, "model": older}, ValueError, "written by an earlier version of fairseq_expire"
    yield {**state, "cfg": unknown}, ValueError, "nothing here knows the architecture no_such_lm"
    yield {**state, "cfg": theirs}, ValueError, "transformer_lm is not a model of fairseq_expire"
    yield {**state, "cfg": moved}, FileNotFoundError, "was trained on .*gone, which is not there"
    yield {"cfg": state["cfg"]}, ValueError, "holds no model with its options: expected a checkpoint"
    yield [1, 2], ValueError, "holds no model with its options: expected a checkpoint"


def test_checkpoints_that_are_refused(checkpoint, tmp_path, capfd):
    path = tmp_path / "checkpoint.pt"
    for state, kind, words in damaged_checkpoints(checkpoint, tmp_path):
        torch.save(state, path)
        with pytest.raises(kind, match=words) as error:
            fairseq_expire.load(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    content = checkpoint.read_bytes()
    for damaged in (b"", b"no checkpoint", content[:1000], content[: len(content) // 2], pickle.dumps({"model": 1})):
        path.write_bytes(damaged)
        with pytest.raises(
            ValueError, match=r"checkpoint.pt is no checkpoint, or is cut short \([\d,]+ bytes\): restore it"
        ):
            fairseq_expire.load(path)
    path.write_bytes(pickle.dumps(Code()))
    with pytest.raises(ValueError, match="it is refused|is no checkpoint"):
        fairseq_expire.load(path)
    assert "this code ran" not in capfd.readouterr().out
    with pytest.raises(FileNotFoundError, match="none.pt: not there; expected a checkpoint"):
        fairseq_expire.load(tmp_path / "none.pt")


def change_config(folder, **changed):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changed}))


def change_model(folder, **changed):
    model = json.loads((folder / "config.json").read_text())["model"]
    change_config(folder, model={**model, **changed})


@pytest.mark.parametrize(
    "damage, kind, words",
    [
        (lambda f: (f / "config.json").unlink(), FileNotFoundError, "no config.json in"),
        (lambda f: (f / "config.json").write_text("{"), ValueError, "config.json: not JSON"),
        (lambda f: change_config(f, format=1), ValueError, "its format is not 3, the one this version reads; export"),
        (
            lambda f: change_config(f, dictionary_digest=64 * "0"),
            ValueError,
            "trained with another dictionary than the dict.txt",
        ),
        (lambda f: change_model(f, depth=1), ValueError, "the field depth .* not known"),
        (lambda f: change_model(f, num_layers=1), ValueError, "not the weights of .*layers.1.* expected none"),
        (lambda f: change_model(f, num_heads=5), ValueError, "config.json: .*5 heads and width 32"),
        (lambda f: change_model(f, vocab_size=5), ValueError, "symbols, and the model has 5"),
        (lambda f: (f / "model.safetensors").unlink(), FileNotFoundError, "no model.safetensors in"),
        (
            lambda f: (f / "model.safetensors").write_bytes(b"\0" * 99),
            ValueError,
            "model.safetensors: not the file that",
        ),
        (lambda f: (f / "dict.txt").unlink(), FileNotFoundError, "no dict.txt in"),
        (lambda f: (f / "dict.txt").write_text("a 1\n"), ValueError, "dict.txt: not the file that manifest.json names"),
        (lambda f: (f / "manifest.json").unlink(), ValueError, "the model reads bytes, but .* says words"),
        (lambda f: (f / "manifest.json").write_text("[]"), ValueError, "manifest.json: not a JSON object"),
    ],
)
def test_damaged_exports(exported, tmp_path, damage, kind, words):
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    damage(folder)
    with pytest.raises(kind, match=words):
        fairseq_expire.load(folder)


def test_data_is_for_checkpoints(exported, data_bin):
    with pytest.raises(ValueError, match="has its own dictionary: leave data out"):
        fairseq_expire.load(exported, data=data_bin)


def test_the_dictionary_of_another_model(exported):
    model = fairseq_expire.load(exported)
    codec = model.codec
    codec.dictionary.symbols[5:7] = codec.dictionary.symbols[6:4:-1]
    with pytest.raises(ValueError, match="trained with another dictionary than this dict.txt"):
        type(model)(model.model, codec)
