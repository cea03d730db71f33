"""Reports cost nothing that is not asked for, and say the same later."""

import torch

from fairseq_expire.modules import ExpireSpan, MemoryTransformer
from fairseq_expire.modules.soft_mask import Sight


def make():
    torch.manual_seed(0)
    stack = MemoryTransformer(
        embed_dim=8, num_heads=2, ffn_dim=8, num_layers=2, position_range=4,
        policy=lambda: ExpireSpan(embed_dim=8, max_span=40, ramp=5, span_init=20),
    )  # fmt: skip
    for layer in stack.layers:
        torch.nn.init.normal_(layer.policy.predictor.weight)
    return stack, torch.randn(2, 90, 8)


@torch.no_grad()
def test_read_token_by_token_they_are_made_when_asked_for(monkeypatch):
    """By then other tokens were read, into the same room."""
    calls = []
    for of, name in ((Sight, "sizes"), (ExpireSpan, "penalty")):
        original = getattr(of, name)
        monkeypatch.setattr(of, name, lambda *args, call=original, **kwargs: calls.append(call) or call(*args, **kwargs))
    stack, text = make()
    stack.eval()
    memory, reports = None, []
    for token in text.split(1, dim=1):
        out = stack(token, memory)
        memory = out.memory
        reports.append(out.reports)
    assert not calls

    for one_by_one, at_once in zip(zip(*reports), stack(text).reports):
        sizes = torch.cat([report.memory_size for report in one_by_one], dim=1)
        assert sizes.max() < 40 and torch.equal(sizes, at_once.memory_size)
        torch.testing.assert_close(sum(report.penalty for report in one_by_one), at_once.penalty)
    assert len(calls) == 2 * (2 * 90 + 2)
    assert reports[0][0].memory_size is reports[0][0].memory_size and len(calls) == 2 * (2 * 90 + 2)


def test_a_look_at_the_penalty_does_not_take_its_gradient():
    stack, text = make()
    report = stack(text).reports[0]
    with torch.no_grad():
        assert report.penalty.min() > 0
    report.penalty.sum().backward()
    assert stack.layers[0].policy.predictor.weight.grad.abs().max() > 0
