"""What a query sees is checked in test_transformer.py, against loops; here, what is compressed."""

import pytest
import torch

from fairseq_expire.modules import Compressive, LayerMemory

D, L, C, RATE = 8, 6, 4, 3
SETTINGS = dict(max_span=L, compressed_size=C, rate=RATE)


def compressed_while_reading(policy, states, block):
    """What the policy makes of a text [B, N, D], block by block: {first token of the group: compressed memory [B, D]}."""
    memory = LayerMemory.empty(states.size(0), D, states)
    compressed, read = {}, 0
    for part in states.split(block, dim=1):
        made = policy.compress(memory, part, None)
        for number in range(made.age.size(1)):
            if made.age[0, number] < 1000:
                first = read - made.age[0, number].item()
                assert first not in compressed, "a group was compressed twice"
                compressed[first] = made.states[:, number]
        memory = memory.with_compressed(made.states.detach(), made.age, None).extended(part, None, None)
        spans = policy.spans(memory.states).masked_fill(memory.compressed.unsqueeze(-1), policy.compressed_span)
        memory, keep = policy.retain(memory.advance(part.size(1)), spans)
        memory = memory.compact(keep, tuple(keep.sum(dim=1).tolist()))
        read += part.size(1)
    return compressed, memory


@pytest.mark.parametrize("block", [1, 2, 3, 7, 29])
@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_every_group_is_compressed_once(pooling, block):
    states = torch.randn(2, 29, D)
    compressed, memory = compressed_while_reading(Compressive(**SETTINGS, pooling=pooling), states, block)
    # The last L tokens are states still, and the next query's: a group goes when its first token does.
    assert sorted(compressed) == [first for first in range(0, 29, RATE) if 29 - first > L]
    for first, compressed in compressed.items():
        group = states[:, first : first + RATE]
        torch.testing.assert_close(compressed, group.mean(dim=1) if pooling == "mean" else group.amax(dim=1))
    # 29 - 6 = 23 tokens are gone: 8 groups, the youngest of which shares a token with the states.
    assert memory.age[0][memory.compressed[0]].tolist() == [17, 14, 11, 8]
    assert memory.age[0][~memory.compressed[0]].tolist() == [6, 5, 4, 3, 2, 1]


def test_a_gap_in_the_stream_leaves_what_was_there_in_place():
    """A block that was skipped makes memories older; groups with missing tokens are made of the others."""
    policy = Compressive(**SETTINGS)
    states = torch.randn(1, 10, D)
    _, memory = compressed_while_reading(policy, states, 5)
    # Tokens 4 ... 9 are held; 10 and 11 are skipped, so the group of 9 is 9 alone.
    made = policy.compress(memory.advance(2), torch.randn(1, 6, D), None)
    ages = [age for age in made.age[0].tolist() if age < 1000]
    assert ages == [6, 3]
    torch.testing.assert_close(made.states[:, 0], states[:, 6:9].mean(dim=1))
    torch.testing.assert_close(made.states[:, 1], states[:, 9])


def test_span_limit_only_when_scoring():
    made = Compressive(**SETTINGS, span_limit=3)
    assert made.train().longest is None
    assert made.eval().longest == 3


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
