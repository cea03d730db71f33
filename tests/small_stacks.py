"""Small stacks with random weights, one of each memory policy, and a text for them."""

import pytest
import torch

from fairseq_expire.modules import AdaptiveSpan, Compressive, ExpireSpan, FixedSpan, MemoryTransformer
from fairseq_expire.modules.policies.compressive import POOLINGS

D, K, SPAN, RAMP, LENGTH = 16, 2, 40, 6, 130
SHORT, COMPRESSED, RATE = 17, 9, 3


class KeepEverything(ExpireSpan):
    """Expire-Span that deletes nothing."""

    def retain(self, visibility):
        return torch.ones_like(visibility.age, dtype=torch.bool)


def make(kind="expire", pre_norm=False, span=SPAN, **changes):
    torch.manual_seed(0)
    policies = {
        "expire": lambda: ExpireSpan(embed_dim=D, max_span=span, ramp=RAMP, span_init=12.0),
        "keep": lambda: KeepEverything(embed_dim=D, max_span=SPAN, ramp=RAMP, span_init=12.0),
        "shortened": lambda: ExpireSpan(embed_dim=D, max_span=SPAN, ramp=RAMP, span_init=12.0, shortening=True),
        "fixed": lambda: FixedSpan(max_span=span),
        "adaptive": lambda: AdaptiveSpan(num_heads=K, max_span=span, ramp=RAMP),
        # Two of three compressed memories become visible inside of a block, whatever its length.
        **{
            f"compressive-{pooling}": lambda pooling=pooling: Compressive(
                max_span=SHORT, compressed_size=COMPRESSED, rate=RATE, pooling=pooling
            )
            for pooling in POOLINGS
        },
    }
    if kind.startswith("compressive"):
        # Every state and a few of the compressed memories have a position.
        changes = {"position_range": SHORT + 3, **changes}
    settings = {
        "embed_dim": D,
        "num_heads": K,
        "ffn_dim": 24,
        "num_layers": 2,
        "position_range": 9,
        "policy": policies[kind],
    }
    stack = MemoryTransformer(**{**settings, **changes}, pre_norm=pre_norm).double()
    for layer in stack.layers:
        if isinstance(layer.policy, ExpireSpan):
            # Spans that differ from token to token.
            torch.nn.init.normal_(layer.policy.predictor.weight, std=0.5)
        if isinstance(layer.policy, AdaptiveSpan):
            # One head looks almost nowhere, the other one up to the end, where its ramp is cut off.
            layer.policy.ratio.data = torch.tensor([0.1, 0.95], dtype=torch.float64)
    return stack


def text(rows=3, length=LENGTH):
    return torch.randn(rows, length, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


# Layer inputs are stored in train() or with gradients, keys and values in eval() without gradients.
MODES = pytest.mark.parametrize("training", [True, False], ids=["inputs", "keys"])
KIND_NAMES = ["expire", "fixed", "adaptive", *(f"compressive-{pooling}" for pooling in POOLINGS)]
KINDS = pytest.mark.parametrize("kind", KIND_NAMES)
NORMS = pytest.mark.parametrize("pre_norm", [False, True], ids=["post-norm", "pre-norm"])
