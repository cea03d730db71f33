"""Small models with random weights, made without a file."""

from functools import partial

import torch

from fairseq_expire.inference import TextModel
from fairseq_expire.modules import (
    AdaptiveSpan,
    Compressive,
    ExpireSpan,
    FixedSpan,
    LanguageModel,
    LanguageModelConfig,
)
from fairseq_expire.tokenizers.bound import BoundTokenizer, make_tokenizer
from fairseq_expire.tokenizers.bytes_and_chars import byte_symbol
from fairseq_expire.tokenizers.dictionary import PlainDictionary, dictionary_digest

WIDTH = 16
POLICIES = {
    "expire_span": partial(ExpireSpan, embed_dim=WIDTH, max_span=40, ramp=4, span_init=9),
    "fixed_span": partial(FixedSpan, max_span=11),
    "adaptive_span": partial(AdaptiveSpan, num_heads=2, max_span=20, ramp=4, span_init=7),
    "compressive": partial(Compressive, max_span=8, compressed_size=3, rate=3),
}
BYTES = [byte_symbol(byte) for byte in range(256)]


def text_model(policy="expire_span", level="bytes", symbols=BYTES, seed=0):
    """Makes a model whose predictions differ much from token to token: no two continuations are equal by chance."""
    dictionary = PlainDictionary(symbols)
    codec = BoundTokenizer(dictionary, make_tokenizer(level, {}))
    torch.manual_seed(seed)
    config = LanguageModelConfig(
        vocab_size=len(dictionary),
        pad=dictionary.pad(),
        embed_dim=WIDTH,
        num_heads=2,
        ffn_dim=32,
        num_layers=2,
        position_range=6,
        policy=POLICIES[policy],
    )
    model = LanguageModel(config, dictionary_digest(codec.symbols))
    torch.nn.init.normal_(model.output_projection.weight, std=1.0)
    for layer in model.stack.layers:
        if policy == "expire_span":
            torch.nn.init.normal_(layer.policy.predictor.weight, std=0.5)
    return TextModel(model, codec)
