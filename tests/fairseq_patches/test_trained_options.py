"""Options that are part of a trained model, and options in place of those in a checkpoint."""

import dataclasses

import pytest
import torch
from building import build
from fairseq.models import MODEL_DATACLASS_REGISTRY
from omegaconf import OmegaConf

from fairseq_expire.fairseq_patches.overrides import check_overrides
from fairseq_expire.fairseq_patches.trained_options import TRAINED, check_trained_options, differences
from fairseq_expire.models.expire_span_lm import ExpireSpanLanguageModel

ARCHS = ["expire_span_lm", "adaptive_span_lm", "compressive_transformer_lm", "transformer_xl_lm"]
SMALL = [
    "--decoder-layers", "1", "--decoder-embed-dim", "8", "--decoder-ffn-embed-dim", "8",
    "--decoder-attention-heads", "2", "--max-span", "64", "--position-range", "8",
]  # fmt: skip
# Options that do not change a trained model, only how it is trained or read.
FREE = {
    "_name", "dropout", "decoder_dropout_in", "decoder_dropout_out", "attention_dropout", "activation_dropout",
    "span_limit", "memory_budget", "adaptive_softmax_dropout", "checkpoint_activations", "tokens_per_sample", "span_init",
    "span_shortening",
    # Compared by checks of their own.
    "dictionary_digest", "label_dictionary_digest",
    # Written from the others.
    "model_config",
}  # fmt: skip


def options_of(*given, arch="expire_span_lm"):
    """Returns the options of a model as the command line gives them, and as a checkpoint stores them."""
    _, cfg = build(*SMALL, *given, arch=arch, with_cfg=True)
    return cfg, OmegaConf.create(OmegaConf.to_container(cfg, resolve=False, enum_to_str=True))


def other(field, value):
    """Returns another value of an option."""
    if isinstance(value, bool):
        return not value
    if field.name.endswith("cutoff"):
        return "10,60"
    if field.name == "compression":
        return "max"
    return (value or 0) + 1


@pytest.mark.parametrize("arch", ARCHS)
def test_every_option_is_either_part_of_the_model_or_free(arch):
    cfg, trained = options_of(
        "--adaptive-input", "--adaptive-input-cutoff", "20", "--adaptive-softmax-cutoff", "20", arch=arch
    )
    assert differences(trained, cfg) == []
    for field in dataclasses.fields(MODEL_DATACLASS_REGISTRY[arch]):
        assert (field.name in FREE) != (TRAINED in field.metadata), field.name
        if field.name in FREE:
            continue
        changed = OmegaConf.merge(cfg, {})
        changed[field.name] = other(field, cfg[field.name])
        found = [difference.option for difference in differences(trained, changed)]
        option = f"--{field.name.replace('_', '-')}"
        # Without adaptive input, the options of its clusters differ, too.
        assert found[0] == option and (len(found) == 1 or option == "--adaptive-input")
        with pytest.raises(
            ValueError, match=rf"model\.pt was trained with .*{option} .* asks for .*{option} .* part of the trained"
        ):
            check_trained_options("model.pt", trained, changed, weights_only=False)


def test_unused_options_may_differ():
    _, trained = options_of()
    more, _ = options_of(
        "--adaptive-softmax-factor", "2", "--adaptive-input-cutoff", "20", "--dropout", "0.5", "--span-init", "3"
    )
    assert differences(trained, more) == []
    _, clusters = options_of("--adaptive-softmax-cutoff", "20")
    same, _ = options_of("--adaptive-softmax-cutoff", "[20]", "--adaptive-softmax-factor", "4.0")
    assert differences(clusters, same) == []


def test_a_preset_equals_its_options():
    tiny, trained = options_of("--span-init", "3", arch="expire_span_lm_tiny")
    spelled, _ = options_of(
        "--span-ramp",
        "32",
        "--span-input-scale",
        "8",
        "--share-decoder-input-output-embed",
        "--decoder-normalize-before",
    )
    assert differences(trained, spelled) == differences(trained, tiny) == []
    architecture, _ = options_of(arch="transformer_xl_lm")
    (difference,) = differences(trained, architecture)
    assert (difference.option, difference.trained, difference.asked) == (
        "--arch",
        "expire_span_lm",
        "transformer_xl_lm",
    )


def test_weights_alone_fit_other_spans():
    _, trained = options_of()
    spans, _ = options_of("--max-span", "96", "--span-ramp", "4")
    message = check_trained_options("model.pt", trained, spans, weights_only=True)
    assert message == (
        "the weights of model.pt were trained with --max-span 64, --span-ramp 128, here --max-span 96, --span-ramp 4"
    )
    more, _ = options_of("--max-span", "96", "--decoder-normalize-before")
    with pytest.raises(
        ValueError, match=r"trained with --decoder-normalize-before off, and .* for --decoder-normalize-before on:"
    ):
        check_trained_options("model.pt", trained, more, weights_only=True)


GOOD = [
    {"span_limit": 5},
    {"data": "elsewhere", "tokens_per_sample": 7},
    {"dropout": 0.0, "fp16": True, "seed": 3},
    {"task": {"data": "elsewhere"}, "model": {"span_limit": 3}},
    {"bpe": "sentencepiece", "sentencepiece_model": "spm.model"},
    {},
]
BAD = [
    (
        {"span_limt": 5},
        r"no option span_limt to override in the checkpoint \(is span_limit meant\?\): .*, max_span, .*, span_ramp",
    ),
    ({"model": {"maxspan": 5}}, r"no option model.maxspan to override in the checkpoint \(is max_span meant\?\)"),
    ({"compressed_size": 5}, "no option compressed_size"),
    ({"span_limit": 5, "x": 1, "a": 2}, "no option a, x to override in the checkpoint: expected names such as"),
]


@pytest.mark.parametrize("overrides", GOOD, ids=str)
def test_known_overrides_pass(checkpoint, overrides):
    check_overrides([str(checkpoint)], overrides)


@pytest.mark.parametrize("overrides, words", BAD, ids=lambda value: str(value) if isinstance(value, dict) else "")
def test_unknown_overrides_are_refused(checkpoint, overrides, words):
    with pytest.raises(ValueError, match=words):
        check_overrides([str(checkpoint)], overrides)


def test_from_pretrained_checks_overrides(checkpoint, data_bin):
    loaded = ExpireSpanLanguageModel.from_pretrained(
        str(checkpoint.parent), checkpoint.name, str(data_bin), span_limit=5
    )
    assert loaded.models[0].decoder.model.stack.layers[0].policy.span_limit == 5
    with pytest.raises(ValueError, match="no option span_limt to override"):
        ExpireSpanLanguageModel.from_pretrained(str(checkpoint.parent), checkpoint.name, str(data_bin), span_limt=5)


def test_one_of_several_checkpoints_may_have_the_option(checkpoint, tmp_path):
    state = torch.load(checkpoint)
    state["cfg"]["model"].update(_name="compressive_transformer_lm", compressed_size=4)
    torch.save(state, tmp_path / "other.pt")
    check_overrides([str(checkpoint), str(tmp_path / "other.pt")], {"compressed_size": 5})
    with pytest.raises(ValueError, match="no option compresed_size"):
        check_overrides([str(checkpoint), str(tmp_path / "other.pt")], {"compresed_size": 5})
