"""The registered architectures: options, large vocabularies, what a checkpoint refuses."""

from types import SimpleNamespace

import commands
import pytest
import torch
from building import build
from fairseq.data import Dictionary
from fairseq.models import ARCH_MODEL_NAME_REGISTRY

from fairseq_expire.criterions.expire_span_loss import ExpireSpanLoss
from fairseq_expire.models.memory_lm import MemoryLanguageModel
from fairseq_expire.modules import ExpireSpan, FixedSpan

SMALL = [*commands.MODEL, "--max-span", "64", "--span-ramp", "8", "--span-init", "16"]
FIXED = [*commands.MODEL, "--max-span", "64"]
ADAPTIVE = ["--adaptive-input", "--adaptive-input-cutoff", "20,50", "--adaptive-softmax-cutoff", "20,50"]


def test_options_reach_the_modules():
    model = build(
        *SMALL, "--decoder-normalize-before", "--span-input-scale", "3", "--span-shortening", "--span-limit", "9",
        "--position-range", "11", "--tokens-per-sample", "40", "--attention-dropout", "0.2",
        "--activation-dropout", "0.3", "--checkpoint-activations",
    )  # fmt: skip
    stack = model.decoder.model.stack
    policy = stack.layers[1].policy
    assert isinstance(policy, ExpireSpan)
    assert (policy.max_span, policy.ramp, policy.input_scale, policy.shortening, policy.span_limit) == (
        64,
        8,
        3,
        True,
        9,
    )
    torch.testing.assert_close(policy.spans(torch.randn(1, 1, 32)), torch.full((1, 1, 1), 16.0))
    assert stack.checkpoint_activations
    assert stack.position.shape == (11, 16) and stack.final_norm is not None and len(stack.layers) == 2
    assert stack.layers[0].attention_dropout == 0.2 and stack.layers[0].activation_dropout.p == 0.3


def test_dropout_of_embedding_and_last_layer():
    """Each has a dropout of its own; that of the embedding is by default that of the sublayers."""
    language_model = build(*SMALL, "--dropout", "0.4").decoder.model
    assert (language_model.dropout_in.p, language_model.dropout_out.p) == (0.4, 0)
    assert language_model.stack.layers[0].dropout.p == 0.4
    torch.manual_seed(0)
    model = build(*SMALL, "--decoder-dropout-in", "0.2", "--decoder-dropout-out", "0.3")
    decoder, language_model = model.decoder, model.decoder.model
    assert (language_model.dropout_in.p, language_model.dropout_out.p) == (0.2, 0.3)
    assert language_model.stack.layers[0].dropout.p == 0
    tokens = torch.randint(4, 100, (20, 50))
    seen = []
    language_model.stack.register_forward_pre_hook(lambda stack, given: seen.append(given[0]))
    features, _ = decoder.extract_features(tokens)
    assert (seen[0] == 0).float().mean().item() == pytest.approx(0.2, abs=0.02)
    assert (features == 0).float().mean().item() == pytest.approx(0.3, abs=0.02)
    features, _ = model.eval().decoder.extract_features(tokens)
    assert (features != 0).all() and (seen[1] != 0).all()


def test_positions_default_to_the_block_and_with_a_fixed_span_to_the_span():
    assert build(*SMALL, "--tokens-per-sample", "40").decoder.model.stack.position_range == 40
    fixed = build(*FIXED, "--tokens-per-sample", "40", arch="transformer_xl_lm").decoder.model.stack
    assert fixed.position_range == 64 and isinstance(fixed.layers[0].policy, FixedSpan)


@pytest.mark.parametrize(
    "given",
    [
        [],
        ["--share-decoder-input-output-embed"],
        ADAPTIVE,
        [*ADAPTIVE, "--tie-adaptive-weights", "--tie-adaptive-proj"],
    ],
    ids=["plain", "shared", "adaptive", "adaptive-tied"],
)
def test_probabilities_sum_to_one_and_everything_trains(given):
    torch.manual_seed(0)
    model = build(*SMALL, *given)
    tokens = torch.randint(4, 100, (2, 12))
    with torch.no_grad():
        logprobs = model.get_normalized_probs(model(tokens), log_probs=True)
    torch.testing.assert_close(logprobs.exp().sum(-1), torch.ones(2, 12))
    criterion = ExpireSpanLoss(
        SimpleNamespace(target_dictionary=Dictionary(), label_dictionary=None, level="words"), 1e-3, False
    )
    criterion(model, {"net_input": {"src_tokens": tokens}, "target": tokens, "ntokens": 24})[0].backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == []


def test_sharing():
    shared = build(*SMALL, "--share-decoder-input-output-embed").decoder.model
    assert shared.output_projection.weight is shared.embed_tokens.weight
    tied = build(*SMALL, *ADAPTIVE, "--tie-adaptive-weights").decoder.model
    assert tied.adaptive_softmax.head.word_proj.weight is tied.embed_tokens.weights(0)[0]


def test_a_memory_can_be_given_as_a_value():
    model = build(*SMALL).eval()
    tokens = torch.randint(4, 100, (2, 20))
    whole, _ = model(tokens)
    first, extra = model(tokens[:, :13])
    second, _ = model(tokens[:, 13:], memory=extra["memory"])
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)


def test_embedding_scale():
    scaled, plain = build(*SMALL), build(*SMALL, "--no-scale-embedding")
    assert scaled.decoder.model.embed_scale == pytest.approx(32**0.5) and plain.decoder.model.embed_scale == 1


PRESETS = sorted(arch for arch, name in ARCH_MODEL_NAME_REGISTRY.items() if name == "expire_span_lm")


@pytest.mark.parametrize("arch", PRESETS)
def test_presets_build(arch):
    with torch.device("meta"):
        model = build(arch=arch, symbols=201_000 if "wikitext" in arch else 300)
    assert isinstance(model, MemoryLanguageModel)


def test_there_are_the_presets_that_the_readme_names():
    expected = {"tiny", "enwik8", "enwik8_small", "pg19", "wikitext103"}
    assert expected <= {arch.removeprefix("expire_span_lm_") for arch in PRESETS}


def test_checkpoints_of_other_models_and_versions():
    model = build(*SMALL)
    older = {name.replace("decoder.model.", "decoder."): value for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="the checkpoint was written by an earlier version of fairseq_expire"):
        model.load_state_dict(older)
    deeper = build(*SMALL, "--decoder-layers", "3").state_dict()
    with pytest.raises(ValueError, match=r"a weight model.stack.layers.2.\S+, which the model lacks; give the options"):
        model.load_state_dict(deeper)
    model.load_state_dict(build(*SMALL).state_dict())


def test_checkpoint_with_another_position_range():
    with pytest.raises(ValueError, match=r"positions for 30 steps, --position-range .* asks for 31"):
        build(*SMALL, "--position-range", "31").load_state_dict(build(*SMALL, "--position-range", "30").state_dict())


@pytest.mark.parametrize(
    "given, words",
    [
        (["--decoder-attention-heads", "5"], "5 heads and width 32"),
        (["--span-ramp", "0"], "ramp"),
        (["--max-span", "0"], "max_span"),
        (["--span-init", "64"], "span_init"),
        (["--span-init", "-1"], "span_init"),
        (["--span-limit", "0"], "span_limit"),
        (["--position-range", "0"], "position_range"),
        (["--decoder-dropout-in", "1"], "decoder_dropout_in"),
        (["--decoder-dropout-out", "-0.1"], "decoder_dropout_out"),
        (["--adaptive-softmax-cutoff", "50,20"], "--adaptive-softmax-cutoff"),
        (["--adaptive-softmax-cutoff", "50,200"], "100 symbols"),
        (["--adaptive-input"], "--adaptive-input-cutoff"),
        (["--share-decoder-input-output-embed", "--adaptive-softmax-cutoff", "50"], "--tie-adaptive-weights"),
        (["--tie-adaptive-weights"], "needs --adaptive-input"),
        (["--tie-adaptive-proj"], "only works together"),
    ],
)
def test_bad_options(given, words):
    with pytest.raises(ValueError, match=words):
        build(*SMALL, *given)
