"""The plain model against the decoder of fairseq's models, and its configuration as JSON."""

import json
from functools import partial

import commands
import pytest
import torch
from building import build

from fairseq_expire.modules import ExpireSpan, LanguageModel, LanguageModelConfig, MemoryPolicy

ADAPTIVE = ["--adaptive-input", "--adaptive-input-cutoff", "20,50", "--adaptive-softmax-cutoff", "20,50"]
MODELS = {
    "expire_span_lm": ["--max-span", "40", "--span-ramp", "8", "--span-init", "9", "--decoder-normalize-before"],
    "transformer_xl_lm": ["--max-span", "9", "--share-decoder-input-output-embed", "--no-scale-embedding"],
    "adaptive_span_lm": [
        "--max-span",
        "20",
        "--span-ramp",
        "4",
        *ADAPTIVE,
        "--tie-adaptive-weights",
        "--tie-adaptive-proj",
    ],
    "compressive_transformer_lm": [
        "--max-span",
        "8",
        "--compression",
        "max",
        *ADAPTIVE,
        "--adaptive-softmax-factor",
        "2",
    ],
}


@pytest.mark.parametrize("arch", MODELS)
def test_a_model_from_its_json_reads_as_the_decoder(arch):
    torch.manual_seed(0)
    model = build(*commands.MODEL, *MODELS[arch], arch=arch).eval()
    content = json.loads(json.dumps(model.decoder.model.config.to_json()))
    config = LanguageModelConfig.from_json(content)
    assert config.to_json() == content
    plain = LanguageModel(config, "digest").eval()
    plain.load_state_dict(model.decoder.model.state_dict())
    tokens = torch.randint(4, 100, (2, 60), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.get_normalized_probs(model(tokens), log_probs=True)
        memory, blocks = None, []
        for block in tokens.split(25, dim=1):
            log_probs, memory, reports = plain(block, memory)
            blocks.append(log_probs)
    torch.testing.assert_close(torch.cat(blocks, dim=1), expected)
    assert len(reports) == 2


def test_a_policy_with_other_options():
    config = build(*commands.MODEL, *MODELS["expire_span_lm"]).decoder.model.config
    assert config.with_policy_options(span_limit=3).policy().span_limit == 3
    with pytest.raises(
        ValueError, match=r"the memory policy expire_span cannot be made with these options .*'loudness'"
    ):
        config.with_policy_options(loudness=3)


class Loud(MemoryPolicy):
    def __init__(self):
        super().__init__(ramp=1)


PLAIN = {"vocab_size": 10, "pad": 1, "embed_dim": 8, "num_heads": 2, "ffn_dim": 8, "num_layers": 1, "position_range": 4}
JSON = {**PLAIN, "policy": {"name": "fixed_span", "max_span": 5}}


def test_a_policy_that_nobody_else_knows_cannot_be_written_down():
    for policy in (Loud, partial(Loud), lambda: Loud()):
        with pytest.raises(
            ValueError, match=r"remembers with Loud, .* expected one of the policies expire_span, fixed_span"
        ):
            LanguageModelConfig(**PLAIN, policy=policy).to_json()
    with pytest.raises(ValueError, match="remembers with ExpireSpan"):
        LanguageModelConfig(**PLAIN, policy=lambda: ExpireSpan(embed_dim=8, max_span=9, ramp=1, span_init=2)).to_json()


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"policy": {"name": "loud"}}, "no memory policy 'loud': expected one of expire_span"),
        ({"policy": {"name": "fixed_span"}}, "fixed_span cannot be made with these options .*max_span"),
        ({"policy": {"name": "fixed_span", "max_span": 0}}, "max_span is the number of steps remembered"),
        ({"policy": "fixed_span"}, "a policy is described by a JSON object, got 'fixed_span'"),
        ({"num_layers": "two"}, "the field num_layers of a model is 'two', expected int"),
        ({"pre_norm": 1}, "the field pre_norm of a model is 1, expected bool"),
        ({"dropout": None}, "the field dropout of a model is None, expected float"),
        ({"depth": 1}, "the field depth of a model is not known"),
        ({"adaptive_input": {"cutoffs": 5}}, "clusters are described by cutoffs and factor"),
        (
            {"share_embedding": True, "adaptive_input": {"cutoffs": [5], "factor": 4}},
            "share_embedding shares one full matrix",
        ),
        ({"tie_adaptive_weights": True}, "tie_adaptive_weights needs the same clusters"),
        ({"tie_adaptive_proj": True}, "only works together with tie_adaptive_weights"),
    ],
)
def test_what_is_no_configuration(changed, words):
    with pytest.raises(ValueError, match=words):
        LanguageModelConfig.from_json({**JSON, **changed})


def test_a_missing_field():
    for name in JSON:
        with pytest.raises(ValueError, match=f"the field {name} of a model is missing"):
            LanguageModelConfig.from_json({key: value for key, value in JSON.items() if key != name})
    assert LanguageModelConfig.from_json(JSON).to_json()["dropout"] == 0
