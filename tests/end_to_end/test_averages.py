"""Moving averages (--store-ema), averaged checkpoints, and the check of the dictionary that belongs to a checkpoint."""

import hashlib
import json
import shutil
import sys

import commands
import pytest
import safetensors.torch
import torch
from fairseq import options
from fairseq.checkpoint_utils import save_ema_as_checkpoint
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq_cli import eval_lm, train, validate

import fairseq_expire
from fairseq_expire import export
from fairseq_expire.models.expire_span_lm import ExpireSpanLanguageModel

OURS = ["--user-dir", commands.USER_DIR, "--task", "memory_caching_lm", "--cpu", "--num-workers", "0"]
LARGE = ["--adaptive-input", "--adaptive-input-cutoff", "20,40", "--adaptive-softmax-cutoff", "20,40"]
RUNS = {
    "expire_span_lm": ["--span-shortening"],
    "transformer_xl_lm": ["--share-decoder-input-output-embed", "--ema-fp32"],
    "adaptive_span_lm": [*LARGE, "--tie-adaptive-weights"],
    "compressive_transformer_lm": [*LARGE, "--ema-fp32"],
}


@pytest.fixture
def call(monkeypatch):
    """Runs a command of fairseq."""

    def call(main, *arguments):
        monkeypatch.setattr(sys, "argv", ["fairseq", *map(str, arguments)])
        main()

    return call


@pytest.fixture
def training(call):
    def training(data, save_dir, updates, *given, arch="expire_span_lm"):
        call(
            train.cli_main, data, *OURS, "--arch", arch, *commands.MODEL,
            *commands.SPANS.get(arch, ["--max-span", "64"]),
            "--criterion", "expire_span_loss", "--tokens-per-sample", "32", "--batch-size", "8", "--optimizer", "adam",
            "--lr", "0.003", "--max-update", updates, "--save-dir", save_dir, "--no-epoch-checkpoints",
            "--save-interval-updates", "2", "--disable-validation", *given,
        )  # fmt: skip

    return training


def bits(data, path):
    """Bits per token of the test split by ``fairseq-eval-lm``."""
    given = [str(part) for part in (data, "--path", path, *OURS, "--gen-subset", "test")]
    args = options.parse_args_and_arch(options.get_eval_lm_parser(), given)
    return float(eval_lm.main(convert_namespace_to_omegaconf(args))["loss"])


def average(paths, dest):
    """A checkpoint with the mean of the weights of several, and everything else from the first."""
    states = [torch.load(path, weights_only=True) for path in paths]
    total = {name: sum(state["model"][name].float() for state in states) for name in states[0]["model"]}
    torch.save({**states[0], "model": {name: value / len(states) for name, value in total.items()}}, dest)
    return dest


@pytest.mark.parametrize("arch", RUNS)
def test_a_moving_average_is_trained_saved_and_gone_on_with(arch, data_bin, training, corpus, tmp_path):
    """A run that is stopped and resumed has the same average, bit for bit. The average can be read as a model."""
    given = ["--store-ema", "--ema-decay", "0.7", *RUNS[arch]]
    training(data_bin, tmp_path / "whole", 4, *given, arch=arch)
    training(data_bin, tmp_path / "parts", 2, *given, arch=arch)
    training(data_bin, tmp_path / "parts", 4, *given, arch=arch)
    whole, parts = (tmp_path / name / "checkpoint_last.pt" for name in ("whole", "parts"))
    state, other = (torch.load(path, weights_only=True) for path in (whole, parts))
    for name in ("ema", *(["ema_fp32_params"] if "--ema-fp32" in given else [])):
        assert state["extra_state"][name].keys() == other["extra_state"][name].keys() == state["model"].keys()
        for key, value in state["extra_state"][name].items():
            assert value.is_floating_point()
            torch.testing.assert_close(other["extra_state"][name][key], value, rtol=0, atol=0)
    save_ema_as_checkpoint(str(whole), str(tmp_path / "ema.pt"))
    found = bits(data_bin, tmp_path / "ema.pt")
    assert abs(found - bits(data_bin, whole)) > 1e-3
    text = (corpus / "test.txt").read_bytes()
    assert fairseq_expire.load(tmp_path / "ema.pt").score(text).bits_per_token == pytest.approx(found, abs=1e-3)


def test_a_moving_average_begins_with_the_weights_of_a_checkpoint_without_one(checkpoint, data_bin, training, tmp_path):
    training(data_bin, tmp_path, 2, "--store-ema", "--ema-decay", "1.0", "--finetune-from-model", checkpoint)
    begun = torch.load(checkpoint, weights_only=True)["model"]
    state = torch.load(tmp_path / "checkpoint_last.pt", weights_only=True)
    for key, value in state["extra_state"]["ema"].items():
        torch.testing.assert_close(value, begun[key], rtol=0, atol=0)
    assert not torch.equal(state["model"]["decoder.model.stack.position"], begun["decoder.model.stack.position"])


@pytest.fixture(scope="module")
def averaged(checkpoint, tmp_path_factory):
    """The average of the checkpoint and of one with other weights."""
    folder = tmp_path_factory.mktemp("averaged")
    state = torch.load(checkpoint, weights_only=True)
    torch.manual_seed(0)
    state["model"] = {name: value + 0.05 * torch.randn_like(value) for name, value in state["model"].items()}
    torch.save(state, folder / "other.pt")
    return average([checkpoint, folder / "other.pt"], folder / "average.pt")


def test_an_average_is_read_by_all_and_scored_alike(averaged, data_bin, training, corpus, tmp_path):
    text = (corpus / "test.txt").read_text()
    export.main([str(averaged), str(tmp_path / "exported")])
    weights = safetensors.torch.load_file(tmp_path / "exported" / "model.safetensors")
    assert all(value.is_floating_point() for value in weights.values())
    expected = fairseq_expire.load(tmp_path / "exported").score(text).bits_per_token
    assert fairseq_expire.load(averaged).score(text).bits_per_token == pytest.approx(expected, abs=1e-9)
    assert bits(data_bin, averaged) == pytest.approx(expected, abs=1e-3)
    stats = commands.validate(data_bin, averaged, "--batch-size", "1")
    assert stats["nll_loss"] == pytest.approx(expected, abs=2e-3)
    hub = ExpireSpanLanguageModel.from_pretrained(str(averaged.parent), averaged.name, data_name_or_path=str(data_bin))
    assert -hub.score(text)["score"].item() / 0.6931472 == pytest.approx(expected, abs=1e-4)
    training(data_bin, tmp_path / "resumed", 42, "--restore-file", averaged)
    training(data_bin, tmp_path / "finetuned", 1, "--finetune-from-model", averaged)
    # Some tools keep only the weights and the options of a checkpoint.
    state = torch.load(averaged, weights_only=True)
    torch.save({"args": None, "cfg": state["cfg"], "model": state["model"]}, tmp_path / "stripped.pt")
    assert bits(data_bin, tmp_path / "stripped.pt") == pytest.approx(expected, abs=1e-3)
    training(data_bin, tmp_path / "from_stripped", 1, "--finetune-from-model", tmp_path / "stripped.pt")
    del state["cfg"]["model"]["dictionary_digest"]
    torch.save(state, tmp_path / "anonymous.pt")
    assert bits(data_bin, tmp_path / "anonymous.pt") == pytest.approx(expected, abs=1e-3)
    assert fairseq_expire.load(tmp_path / "anonymous.pt").score(text).bits_per_token == pytest.approx(
        expected, abs=1e-9
    )


@pytest.fixture(scope="module")
def swapped(data_bin, tmp_path_factory):
    """The data with two symbols of the dictionary exchanged, and without the manifest, which would tell."""
    folder = shutil.copytree(data_bin, tmp_path_factory.mktemp("swapped") / "bin")
    (folder / "manifest.json").unlink()
    lines = (folder / "dict.txt").read_text().splitlines()
    (folder / "dict.txt").write_text("\n".join([*lines[1::-1], *lines[2:]]) + "\n")
    return folder


ANOTHER = "was trained with another dictionary than .*dict.txt.*: give the data it was trained on, or prepare the text"


@pytest.mark.parametrize(
    "read",
    ["eval-lm", "validate", "resume", "restore", "finetune", "ema-seed", "hub", "load", "export"],
)
@pytest.mark.parametrize("which", ["checkpoint", "averaged"])
def test_another_dictionary_of_the_same_size_is_refused(read, which, swapped, call, training, tmp_path, request):
    path = request.getfixturevalue(which)
    shutil.copy(path, tmp_path / "checkpoint_last.pt")
    used = {
        "eval-lm": lambda: call(eval_lm.cli_main, swapped, "--path", path, *OURS, "--gen-subset", "test"),
        "validate": lambda: call(
            validate.cli_main, swapped, "--path", path, *OURS, "--valid-subset", "test", "--batch-size", 1
        ),
        "resume": lambda: training(swapped, tmp_path, 99),
        "restore": lambda: training(swapped, tmp_path / "new", 99, "--restore-file", path),
        "finetune": lambda: training(swapped, tmp_path / "new", 99, "--finetune-from-model", path),
        "ema-seed": lambda: training(swapped, tmp_path / "new", 99, "--store-ema", "--ema-seed-model", path),
        "hub": lambda: ExpireSpanLanguageModel.from_pretrained(
            str(path.parent), path.name, data_name_or_path=str(swapped)
        ),
        "load": lambda: fairseq_expire.load(path, data=swapped),
        "export": lambda: export.export(path, tmp_path / "out", data=swapped),
    }
    with pytest.raises(ValueError, match=ANOTHER) as error:
        used[read]()
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists() and not list((tmp_path / "new").glob("*.pt"))


def test_an_export_keeps_to_its_dictionary(averaged, swapped, tmp_path):
    export.main([str(averaged), str(tmp_path / "exported")])
    assert len(json.loads((tmp_path / "exported" / "config.json").read_text())["dictionary_digest"]) == 64
    content = json.loads((tmp_path / "exported" / "manifest.json").read_text())
    shutil.copy(swapped / "dict.txt", tmp_path / "exported")
    content["dictionary_sha256"] = hashlib.sha256((swapped / "dict.txt").read_bytes()).hexdigest()
    (tmp_path / "exported" / "manifest.json").write_text(json.dumps(content))
    message = r"the model in .* was trained with another dictionary than the dict.txt there"
    with pytest.raises(ValueError, match=message):
        fairseq_expire.load(tmp_path / "exported")
