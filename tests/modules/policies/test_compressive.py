"""Groups of states, and the moment at which each is compressed; test_transformer.py checks what queries see of it."""

import pytest
import torch

from fairseq_expire.modules import Compressive, LayerMemory, MemoryTransformer
from fairseq_expire.modules.memory import EMPTY_AGE

D, L, C, RATE = 8, 6, 4, 3
SETTINGS = {"max_span": L, "compressed_size": C, "rate": RATE}


def read(policy, states, block):
    """Reads a text [B, N, D] block by block.

    Returns:
        {first token of a group: its compressed memory [B, D]}, and the memory of what is left.
    """
    memory = LayerMemory.empty(batch=states.size(0), embed_dim=D, like=states)
    compressed = {}
    for part in states.split(block, dim=1):
        new = policy.compress(memory, part, None)
        for number, age in enumerate(new.age[0].tolist()):
            if age < EMPTY_AGE:
                first = memory.tokens_read[0] - age
                assert first not in compressed, "a group was compressed twice"
                compressed[first] = new.inputs[:, number]
        memory = memory.append(new.age, inputs=new.inputs, min_distance=new.min_distance)
        memory = memory.append(memory.block_age(part.size(1), None), inputs=part)
        keep = policy.retain(policy.visibility(policy.spans(memory.inputs), memory, block=part.size(1)))
        memory = memory.advance(part.size(1)).compact(keep, tuple(keep.sum(dim=1).tolist()))
    return compressed, memory


@pytest.mark.parametrize("block", [1, 2, 3, 7, 29])
@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_every_group_is_compressed_once(pooling, block):
    states = torch.randn(2, 29, D)
    compressed, memory = read(Compressive(**SETTINGS, pooling=pooling), states, block)
    # The last L tokens are still there as states, for the next query: a group goes when its first token does.
    assert sorted(compressed) == [first for first in range(0, 29, RATE) if 29 - first > L]
    for first, pooled in compressed.items():
        group = states[:, first : first + RATE]
        torch.testing.assert_close(pooled, group.mean(dim=1) if pooling == "mean" else group.amax(dim=1))
    # 29 - 6 = 23 tokens are gone: 8 groups, the youngest of which shares a token with the states.
    assert memory.age[0][memory.min_distance[0] == L + 1].tolist() == [17, 14, 11, 8]
    assert memory.age[0][memory.min_distance[0] == 1].tolist() == [6, 5, 4, 3, 2, 1]


def test_no_gradient_flows_through_a_compressed_memory():
    policy = Compressive(**SETTINGS)
    stack = MemoryTransformer(
        embed_dim=D, num_heads=2, ffn_dim=16, num_layers=1, position_range=L + C, policy=lambda: policy
    )
    hidden = torch.randn(1, 12, D, requires_grad=True)
    new = []
    compress = policy.compress
    policy.compress = lambda *arguments: new.append(compress(*arguments)) or new[-1]
    stack(hidden).hidden.sum().backward()
    assert new[0].inputs.size(1) == 2 and not new[0].inputs.requires_grad
    assert hidden.grad.abs().max() > 0


def test_a_gap_in_the_stream_leaves_what_was_there_in_place():
    """A block that was skipped makes memories older; groups with missing tokens are made of the others."""
    policy = Compressive(**SETTINGS)
    states = torch.randn(1, 10, D)
    _, memory = read(policy, states, 5)
    # Tokens 4 ... 9 are remembered; 10 and 11 are skipped, so the group of 9 is 9 alone.
    new = policy.compress(memory.advance(2), torch.randn(1, 6, D), None)
    assert [age for age in new.age[0].tolist() if age < EMPTY_AGE] == [6, 3]
    torch.testing.assert_close(new.inputs[:, 0], states[:, 6:9].mean(dim=1))
    torch.testing.assert_close(new.inputs[:, 1], states[:, 9])


def test_span_limit_only_when_scoring():
    policy = Compressive(**SETTINGS, span_limit=3)
    assert policy.train().max_distance is None
    assert policy.eval().max_distance == 3


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"compressed_size": 0}, "at least 1, got 0"),
        ({"rate": 1}, "at least 2, got 1"),
        ({"max_span": 2}, "at least the 3 that are compressed into one, got 2"),
        ({"pooling": "min"}, "one of mean, max, got min"),
        ({"span_limit": 0}, "at least 1 or none, got 0"),
    ],
)
def test_bad_arguments(settings, message):
    with pytest.raises(ValueError, match=message):
        Compressive(**{**SETTINGS, **settings})
