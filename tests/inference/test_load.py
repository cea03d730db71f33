"""Loading of checkpoints and exports in Python, and the errors of damaged ones."""

import ast
import json
import pickle
import shutil
import sys

import commands
import numpy as np
import pytest
import torch
from fairseq.checkpoint_utils import load_model_ensemble
from fairseq.models import ARCH_MODEL_REGISTRY
from forks import Forks
from scoring import exact_loss, reader_loss
from small_checkpoints import write_checkpoint

import fairseq_expire
from fairseq_expire import export
from fairseq_expire.modules import ExpireSpan

TEXT = "    def wrap(self, text):\n        return ['one', 'two']\n"


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "model"
    export.main([str(checkpoint), str(folder)])
    return folder


def test_scores_are_those_of_fairseq_eval_lm(exported, data_bin, checkpoint, corpus):
    text = (corpus / "test.txt").read_bytes()
    score = fairseq_expire.load(exported).score(text)
    assert len(score.ids) == len(text)
    assert score.bits_per_token == pytest.approx(exact_loss(data_bin, checkpoint), abs=1e-6)
    assert score.bits_per_token == pytest.approx(reader_loss(data_bin, checkpoint, 1)[0], abs=1e-6)
    limited = fairseq_expire.load(exported, span_limit=20).score(text)
    assert limited.bits_per_token == pytest.approx(reader_loss(data_bin, checkpoint, 1, limit=20)[0], abs=1e-6)
    assert abs(limited.bits - score.bits) > 1e-3


def test_an_export_equals_its_checkpoint(exported, checkpoint, data_bin):
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
    assert fairseq_expire.load(checkpoint, data=data_bin).tokenizer.symbols == ours.tokenizer.symbols
    doubled = fairseq_expire.load(exported, dtype=torch.float64)
    np.testing.assert_allclose(doubled.score(TEXT).token_bits, ours.score(TEXT).token_bits, rtol=1e-4)


LOAD = """
import sys
import fairseq_expire
from fairseq_expire import export

exported, checkpoint, dest, text = {arguments}
for path in (exported, checkpoint):
    model = fairseq_expire.load(path)
    print(repr(model.score(text).bits))
    print(repr("".join(model.generate("def ", max_tokens=20, seed=1, utf8=True))))
    stream = model.stream()
    stream.feed("def ")
    assert len(stream.next_distribution().log_probs) == len(model.tokenizer.symbols)
export.main([checkpoint, dest])
imported = {{name.split(".")[0] for name, module in sys.modules.items() if module is not None}}
assert not imported & {{"fairseq", "fairseq_cli", "omegaconf", "hydra"}}
"""
# To Python, these packages are not installed then.
WITHOUT = "import sys\nfor name in ('fairseq', 'fairseq_cli', 'omegaconf', 'hydra'): sys.modules[name] = None\n"


@pytest.mark.parametrize("before", ["", WITHOUT], ids=["beside_fairseq", "without_fairseq"])
def test_checkpoints_and_exports_load_without_importing_fairseq(exported, checkpoint, tmp_path, before):
    forks = Forks("import torch", tmp_path)
    arguments = [str(exported), str(checkpoint), str(tmp_path / "out"), TEXT]
    done = forks.run(before + LOAD.format(arguments=arguments), cwd=tmp_path, search=[commands.ROOT])
    forks.close()
    assert done.returncode == 0, done.stderr
    bits, written, other_bits, other_written = done.stdout.splitlines()
    model = fairseq_expire.load(exported)
    assert float(bits) == float(other_bits) == model.score(TEXT).bits
    assert written == other_written
    assert ast.literal_eval(written) == "".join(model.generate("def ", max_tokens=20, seed=1, utf8=True))
    for file in exported.iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()


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


@pytest.mark.parametrize("arch", OTHERS)
def test_other_models_and_data_without_a_manifest(arch, tmp_path):
    """Covers words as fairseq-preprocess makes them, weights that two modules share, and the other policies."""
    words = [f"w{number}" for number in range(96)]
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "dict.txt").write_text("".join(f"{word} 1\n" for word in words))
    checkpoint = write_checkpoint(tmp_path / "checkpoint.pt", tmp_path / "bin", *OTHERS[arch], arch=arch)
    [model], _ = load_model_ensemble([str(checkpoint)])
    model.eval()
    export.main([str(checkpoint), str(tmp_path / "out")])
    text = " ".join(words[n * n % 96] for n in range(40)) + "\n"
    for path in (checkpoint, tmp_path / "out"):
        loaded = fairseq_expire.load(path)
        ids = loaded.tokenizer.encode(text)
        assert ids[-1] == 2 and 3 not in ids
        tokens = torch.tensor([[2, *ids[:-1]]])
        with torch.no_grad():
            expected = model.get_normalized_probs(model(tokens), log_probs=True)
            log_probs = loaded.model(tokens).log_probs
        assert torch.equal(log_probs, expected)
        bits = -expected[0, torch.arange(len(ids)), ids].sum().item() / np.log(2)
        assert loaded.score(text).bits == pytest.approx(bits, rel=1e-5)


class OwnPolicy(ExpireSpan):
    """A policy that only this file can make."""


def test_an_architecture_of_ones_own(data_bin, tmp_path, monkeypatch):
    """Loads where it is registered, and nowhere else."""
    registered = ARCH_MODEL_REGISTRY["expire_span_lm"]
    with monkeypatch.context() as patched:
        patched.setattr(
            registered,
            "make_policy",
            lambda cfg: (
                lambda: OwnPolicy(embed_dim=32, max_span=cfg.max_span, ramp=16, span_init=48, span_limit=cfg.span_limit)
            ),
        )
        checkpoint = write_checkpoint(tmp_path / "checkpoint.pt", data_bin)
        assert torch.load(checkpoint, weights_only=True)["cfg"]["model"]["model_config"] is None
        model = fairseq_expire.load(checkpoint, span_limit=7)
        assert isinstance(policy := model.model.stack.layers[0].policy, OwnPolicy) and policy.span_limit == 7
        assert model.score(TEXT).bits > 0
    monkeypatch.delitem(sys.modules, "fairseq.models")
    with pytest.raises(
        ValueError, match="nothing here knows the architecture expire_span_lm, whose memory policy only the code that"
    ):
        fairseq_expire.load(checkpoint)


class Code:
    def __reduce__(self):
        return print, ("this code ran",)


def damaged_checkpoints(path, folder):
    """Pairs of a checkpoint and the error that it is refused with."""
    state = torch.load(path, weights_only=True)
    options = state["cfg"]["model"]
    weights = {name: value for name, value in state["model"].items() if not name.endswith("fc1.bias")}
    older = {name.replace("decoder.model.", "decoder."): value for name, value in state["model"].items()}
    moved = {**state["cfg"], "task": {**state["cfg"]["task"], "data": f"{folder / 'gone'}:{folder}"}}
    config = json.loads(options["model_config"])

    def with_options(**changed):
        return {**state, "cfg": {**state["cfg"], "model": {**options, **changed}}}

    def without(*names):
        kept = {name: value for name, value in options.items() if name not in names}
        return {**state, "cfg": {**state["cfg"], "model": {**kept, "_name": "some_lm"}}}

    yield {**state, "extra_state": Code()}, ValueError, "which could run any code when it is loaded: it is refused"
    yield {**state, "model": weights}, ValueError, "the weights are not those of its options .*fc1.bias"
    fewer = with_options(model_config=json.dumps({**config, "num_layers": 1}))
    yield fewer, ValueError, "the weights are not those of its options"
    yield with_options(model_config=json.dumps({**config, "depth": 1})), ValueError, "the field depth .* not known"
    yield with_options(model_config="{"), ValueError, "checkpoint.pt: Expecting property name"
    yield with_options(dictionary_digest=64 * "0"), ValueError, "trained with another dictionary than .*dict.txt"
    smaller = with_options(dictionary_digest=None, model_config=json.dumps({**config, "vocab_size": 7}))
    yield smaller, ValueError, r"dict.txt: \d+ symbols, and the model in .*checkpoint.pt has 7"
    yield {**state, "model": older}, ValueError, "written by an earlier version of fairseq_expire"
    yield without("model_config"), ValueError, "written by an earlier version of fairseq_expire, which did not store"
    yield without("model_config", "dictionary_digest"), ValueError, "some_lm is not a model of fairseq_expire"
    unknown = with_options(_name="no_such_lm", model_config=None)
    yield unknown, ValueError, "nothing here knows the architecture no_such_lm"
    theirs = with_options(_name="transformer_lm", model_config=None)
    yield theirs, ValueError, "nothing here knows the architecture transformer_lm"
    yield {**state, "cfg": moved}, FileNotFoundError, "was trained on .*gone, which is not there"
    yield {"cfg": state["cfg"]}, ValueError, "holds no model with its options: expected a checkpoint"
    yield {**state, "cfg": {"model": options}}, ValueError, "holds no model with its options: expected a checkpoint"
    yield [1, 2], ValueError, "holds no model with its options: expected a checkpoint"


def test_checkpoints_that_are_refused(checkpoint, tmp_path, capfd):
    path = tmp_path / "checkpoint.pt"
    for state, kind, message in damaged_checkpoints(checkpoint, tmp_path):
        torch.save(state, path)
        with pytest.raises(kind, match=message) as error:
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
    with pytest.raises(ValueError, match=r"it is refused|is no checkpoint"):
        fairseq_expire.load(path)
    assert "this code ran" not in capfd.readouterr().out
    with pytest.raises(FileNotFoundError, match=r"none.pt: not there; expected a checkpoint"):
        fairseq_expire.load(tmp_path / "none.pt")


def change_config(folder, **changed):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changed}))


def change_model(folder, **changed):
    model = json.loads((folder / "config.json").read_text())["model"]
    change_config(folder, model={**model, **changed})


@pytest.mark.parametrize(
    "damage, kind, message",
    [
        (lambda f: (f / "config.json").unlink(), FileNotFoundError, "no config.json in"),
        (lambda f: (f / "config.json").write_text("{"), ValueError, "config.json: not JSON"),
        (lambda f: change_config(f, format="x"), ValueError, "not the configuration of an export"),
        (lambda f: change_config(f, format=2), ValueError, r"an earlier version of .* \(format 2, expected 3\): use"),
        (lambda f: change_config(f, format=4), ValueError, r"a later version of .* \(format 4, expected 3\): use"),
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
def test_damaged_exports(exported, tmp_path, damage, kind, message):
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    damage(folder)
    with pytest.raises(kind, match=message):
        fairseq_expire.load(folder)


def test_data_is_an_argument_for_checkpoints(exported, data_bin):
    with pytest.raises(ValueError, match="has its own dictionary: leave data out"):
        fairseq_expire.load(exported, data=data_bin)


def test_a_dictionary_of_another_model(exported):
    model = fairseq_expire.load(exported)
    tokenizer = model.tokenizer
    tokenizer.dictionary.symbols[5:7] = tokenizer.dictionary.symbols[6:4:-1]
    with pytest.raises(ValueError, match=r"trained with another dictionary than this dict.txt"):
        type(model)(model.model, tokenizer)
