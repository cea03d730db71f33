"""fairseq's generator with memories, against fairseq's own generator, which reads everything again for each token."""

import functools

import commands
import pytest
import torch
from building import Task, build
from fairseq.dataclass.configs import GenerationConfig
from fairseq.sequence_generator import SequenceGenerator
from omegaconf import OmegaConf
from torch import nn

from fairseq_expire.tasks.memory_caching_lm import MemoryCachingLMConfig, MemoryCachingLMTask

ARCHS = {
    "expire_span_lm": ["--max-span", "12", "--span-ramp", "3", "--span-init", "5"],
    "transformer_xl_lm": ["--max-span", "9"],
    "adaptive_span_lm": ["--max-span", "12", "--span-ramp", "4", "--span-init", "5"],
    "compressive_transformer_lm": ["--max-span", "8", "--compressed-size", "3", "--compression-rate", "3"],
}
# Longer than all spans, and of several blocks.
PROMPT = 31
BLOCK = 7


SYMBOLS = 24
DICTIONARY = Task(SYMBOLS).source_dictionary


@functools.cache
def make_model(arch, seed=0, *options):
    torch.manual_seed(seed)
    model = build(*commands.MODEL, "--position-range", "6", *ARCHS[arch], *options, arch=arch, symbols=SYMBOLS).eval()
    for layer in model.decoder.model.stack.layers:
        if arch == "expire_span_lm":
            # Different spans.
            nn.init.normal_(layer.policy.predictor.weight, std=0.3)
    if model.decoder.model.output_projection is not None:
        # Some tokens are likely, </s> among them.
        model.decoder.model.output_projection.weight.data *= 3
    return model


@pytest.fixture(scope="module", params=ARCHS)
def model(request):
    return make_model(request.param)


class Rereading(nn.Module):
    """A model without a memory: each call reads whole rows from their start."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens):
        scores, _ = self.model(tokens)
        return scores, None

    def get_normalized_probs(self, net_output, log_probs, sample):
        return self.model.get_normalized_probs(net_output, log_probs, sample)

    def max_decoder_positions(self):
        return 1 << 30


def make_task(block=BLOCK):
    return MemoryCachingLMTask(MemoryCachingLMConfig(data="", tokens_per_sample=block), DICTIONARY, None)


def options(**changes):
    given = {"beam": 4, "max_len_a": 1, "max_len_b": 15, **changes}
    return OmegaConf.merge(OmegaConf.structured(GenerationConfig()), given)


def texts(*sizes, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(4, len(DICTIONARY), (size,), generator=generator) for size in sizes]


def batch(prompts):
    dataset = make_task().build_dataset_for_inference(prompts, [len(prompt) for prompt in prompts])
    return dataset.collater([dataset[number] for number in range(len(prompts))])


def generate(models, prompts, block=BLOCK, given=None, **changes):
    task = make_task(block)
    generator = task.build_generator(models, options(**changes), **(given or {}))
    return task.inference_step(generator, models, batch(prompts))


def reread(models, prompts, **changes):
    """Returns the hypotheses of fairseq's own generator, for prompts of one length."""
    given = options(**changes)
    generator = SequenceGenerator(
        [Rereading(model) for model in models], DICTIONARY, beam_size=given.beam, max_len_a=given.max_len_a,
        max_len_b=given.max_len_b, min_len=given.min_len, normalize_scores=not given.unnormalized,
        len_penalty=given.lenpen, unk_penalty=given.unkpen, temperature=given.temperature,
    )  # fmt: skip
    sample = batch(prompts)
    with torch.no_grad():
        return generator.generate(
            models, sample, prefix_tokens=sample["net_input"]["src_tokens"][:, 1:], bos_token=DICTIONARY.eos()
        )


def assert_same(found, expected):
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected):
        assert [hypothesis["tokens"].tolist() for hypothesis in mine] == [h["tokens"].tolist() for h in theirs]
        for hypothesis, other in zip(mine, theirs):
            torch.testing.assert_close(hypothesis["score"], other["score"], atol=2e-5, rtol=1e-5)
            torch.testing.assert_close(
                hypothesis["positional_scores"], other["positional_scores"], atol=5e-5, rtol=1e-4
            )


def test_beam_search(model):
    prompts = texts(PROMPT, PROMPT, PROMPT)
    found = generate([model], prompts)
    assert_same(found, reread([model], prompts))
    lengths = {len(hypothesis["tokens"]) for row in found for hypothesis in row}
    assert len(lengths) > 1 and max(lengths) <= PROMPT + 1 + 15 + 1, "some hypotheses end before the limit"


@pytest.mark.parametrize(
    "changes",
    [
        {"beam": 1},
        {"lenpen": 0.3},
        {"unnormalized": True},
        {"temperature": 1.7},
        {"unkpen": 3.0},
        {"min_len": PROMPT + 6},
        {"max_len_a": 0, "max_len_b": PROMPT + 3},
        {"beam": 30},
    ],
    ids=str,
)
def test_options_mean_the_same_as_in_fairseq(changes):
    model = make_model("expire_span_lm")
    prompts = texts(PROMPT, PROMPT)
    prompts[0][5] = DICTIONARY.unk()
    assert_same(generate([model], prompts, **changes), reread([model], prompts, **changes))


def test_ensembles():
    models = [
        make_model("expire_span_lm"),
        make_model("transformer_xl_lm", seed=5),
        make_model("adaptive_span_lm", seed=6),
    ]
    prompts = texts(PROMPT, PROMPT)
    found = generate(models, prompts, temperature=1.3)
    assert_same(found, reread(models, prompts, temperature=1.3))
    assert found[0][0]["score"] != generate(models[:1], prompts, temperature=1.3)[0][0]["score"]


def test_adaptive_softmax():
    model = make_model(
        "expire_span_lm", 0, "--adaptive-softmax-cutoff", "6,12", "--adaptive-input", "--adaptive-input-cutoff", "6,12"
    )
    prompts = texts(PROMPT, PROMPT)
    assert_same(generate([model], prompts), reread([model], prompts))


def test_prompts_of_different_lengths_equal_single_prompts(model):
    prompts = texts(40, 3, 0, 22, 3, 40)
    found = generate([model], prompts, max_len_b=8)
    for prompt, row in zip(prompts, found):
        assert_same([row], generate([model], [prompt], max_len_b=8))
        assert all(torch.equal(hypothesis["tokens"][: len(prompt)], prompt) for hypothesis in row)
        assert_same([row], reread([model], [prompt], max_len_b=8))


def test_blocks_change_nothing(model):
    prompts = texts(PROMPT)
    assert_same(generate([model], prompts), generate([model], prompts, block=1000))


def test_sampling_draws_from_the_distribution(long):
    """The first tokens of many samples are as frequent as the probabilities say."""
    model, prompts, count = make_model("expire_span_lm"), texts(PROMPT), 20000 if long else 4000
    torch.manual_seed(0)
    # A beam has fewer rows than there are symbols, but a batch can repeat a prompt.
    found = generate(
        [model], prompts * (count // 20), beam=20, max_len_b=0, sampling=True, sampling_topk=5, temperature=0.8
    )
    scores = model(torch.cat([torch.tensor([DICTIONARY.eos()]), prompts[0]])[None])[0][0, -1].detach() / 0.8
    scores[[DICTIONARY.pad(), DICTIONARY.bos()]] = -torch.inf
    best = scores.log_softmax(0).topk(5)
    expected = best.values.softmax(0)
    firsts = torch.tensor([h["tokens"][PROMPT] for row in found for h in row])
    shares = torch.stack([firsts.eq(index).float().mean() for index in best.indices])
    assert shares.sum() == 1
    torch.testing.assert_close(shares, expected, atol=4 / count**0.5, rtol=0)


def test_sampling_follows_the_seed():
    model, prompts = make_model("expire_span_lm"), texts(PROMPT, 12)

    def sampled(seed):
        torch.manual_seed(seed)
        found = generate([model], prompts, beam=3, sampling=True, sampling_topp=0.9, max_len_b=30)
        return [hypothesis["tokens"].tolist() for row in found for hypothesis in row]

    assert sampled(1) == sampled(1) != sampled(2)


def test_repeated_ngrams_are_blocked_across_the_prompt():
    model = make_model("transformer_xl_lm")
    prompt = texts(PROMPT)[0]
    free = generate([model], [prompt], max_len_b=30, beam=2)[0][0]["tokens"].tolist()
    blocked = generate([model], [prompt], max_len_b=30, beam=2, no_repeat_ngram_size=2)[0][0]["tokens"].tolist()

    def repeated(tokens):
        pairs = list(zip([DICTIONARY.eos(), *tokens], tokens))
        return [pair for place, pair in enumerate(pairs) if place > PROMPT and pair in pairs[:place]]

    assert repeated(free) and not repeated(blocked)


def test_prefix_constraints_see_the_whole_text():
    model, prompts, seen = make_model("expire_span_lm"), texts(PROMPT, 5), []

    def allowed(number, tokens):
        seen.append((number, tokens.tolist()))
        return [tokens.numel() % 20 + 4] if len(tokens) < 1 + len(prompts[number]) + 4 else [DICTIONARY.eos()]

    found = generate([model], prompts, beam=1, given={"prefix_allowed_tokens_fn": allowed})
    for number, prompt in enumerate(prompts):
        generated = [(len(prompt) + step) % 20 + 4 for step in range(1, 5)]
        assert found[number][0]["tokens"].tolist() == [*prompt.tolist(), *generated, DICTIONARY.eos()]
        assert (number, [DICTIONARY.eos(), *prompt.tolist()]) in seen


def test_memory_stays_bounded(monkeypatch):
    """However long the output, no hypothesis stores more than the alive memories, and the prompt's memory is freed."""
    model, prompts = make_model("expire_span_lm"), texts(500, 500)
    sizes, decoder = [], model.decoder
    start, reached = decoder.start_from, []

    def start_from(state, memory, done):
        sizes.append(max(memory.sizes))
        reached.append((memory.layers[0].tokens_read[0], memory.layers[0].rows))
        start(state, memory, done)

    monkeypatch.setattr(decoder, "start_from", start_from)
    generate([model], prompts, beam=5, max_len_b=300, min_len=800)
    # Spans are at most 12 and the ramp is 3. A memory may have 64 more slots, and a block of the prompt.
    assert max(sizes) <= 64 + BLOCK
    assert reached[0] == (500, 10) and reached[-1][0] >= 799


def test_prompts_that_leave_no_token_are_refused():
    model, prompts = make_model("expire_span_lm"), texts(PROMPT)
    with pytest.raises(
        ValueError, match="a prompt has 31 tokens, and --max-len-a 0 with --max-len-b 31 allows 31 in all"
    ):
        generate([model], prompts, max_len_a=0, max_len_b=31)
    with pytest.raises(ValueError, match="allows 47 in all, prompt included, fewer than --min-len 60"):
        generate([model], prompts, min_len=60)
    assert len(generate([model], prompts, max_len_a=0, max_len_b=32, beam=1)[0][0]["tokens"]) <= 33


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"match_source_len": True}, "--match-source-len: a language model has no source"),
        ({"print_alignment": "hard"}, "--print-alignment: a language model has no source"),
        ({"replace_unk": "@@ "}, "--replace-unk: a language model has no source"),
        ({"constraints": "ordered"}, "--constraints: certain words"),
        ({"lm_path": "lm.pt"}, "--lm-path: .*--path a.pt:b.pt"),
        ({"retain_dropout": True}, "--retain-dropout: "),
        ({"print_step": True}, "--print-step: "),
        ({"retain_iter_history": True}, "--retain-iter-history: "),
        ({"decoding_format": "ensemble"}, "--decoding-format: "),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_options_without_effect_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        generate([make_model("transformer_xl_lm")], texts(3), **changes)
