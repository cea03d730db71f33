"""The report of a layer."""

import torch

from fairseq_expire.modules import ExpireSpan, MemoryTransformer
from fairseq_expire.modules.visibility import Visibility


@torch.no_grad()
def test_memory_sizes_are_counted_when_asked_for(monkeypatch):
    """And come out right, though other tokens have been read into the same buffer by then."""
    counted, sizes = [], Visibility.sizes
    monkeypatch.setattr(Visibility, "sizes", lambda *args: counted.append(args) or sizes(*args))
    torch.manual_seed(0)
    stack = MemoryTransformer(
        embed_dim=8, num_heads=2, ffn_dim=8, num_layers=2, position_range=4,
        policy=lambda: ExpireSpan(embed_dim=8, max_span=40, ramp=5, span_init=20),
    ).double().eval()  # fmt: skip
    for layer in stack.layers:
        torch.nn.init.normal_(layer.policy.predictor.weight)
    text, memory, reports = torch.randn(2, 90, 8, dtype=torch.float64), None, []
    for token in text.split(1, dim=1):
        out = stack(token, memory)
        memory = out.memory
        reports.append(out.reports)
    assert not counted

    for one_by_one, at_once in zip(zip(*reports), stack(text).reports):
        found = torch.cat([report.memory_size for report in one_by_one], dim=1)
        assert found.max() < 40 and torch.equal(found, at_once.memory_size)
    assert len(counted) == 2 * (90 + 1)
    assert reports[0][0].memory_size is reports[0][0].memory_size and len(counted) == 2 * (90 + 1)
