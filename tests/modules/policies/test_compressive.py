"""What a query sees is checked in test_transformer.py, against loops; here, what is compressed, and what learns."""

import pytest
import torch

from fairseq_expire.modules import Compressive, LayerMemory, MemoryTransformer

D, L, C, RATE = 8, 6, 4, 3
SETTINGS = dict(embed_dim=D, max_span=L, compressed_size=C, rate=RATE)


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
        keep = policy.retain(policy.visibility(spans, memory, block=part.size(1)))
        memory = memory.advance(part.size(1)).compact(keep, tuple(keep.sum(dim=1).tolist()))
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


def test_the_convolution_starts_as_the_mean():
    states = torch.randn(2, 29, D)
    by_conv, _ = compressed_while_reading(Compressive(**SETTINGS, pooling="conv"), states, 5)
    by_mean, _ = compressed_while_reading(Compressive(**SETTINGS, pooling="mean"), states, 5)
    for first, compressed in by_mean.items():
        torch.testing.assert_close(by_conv[first], compressed)


def stack(pooling="conv"):
    torch.manual_seed(0)
    made = MemoryTransformer(
        embed_dim=D,
        num_heads=2,
        ffn_dim=16,
        num_layers=2,
        position_range=L + C,
        policy=lambda: Compressive(**SETTINGS, pooling=pooling),
        pre_norm=True,
    ).double()
    for layer in made.layers:
        if layer.policy.conv is not None:
            torch.nn.init.normal_(layer.policy.conv.weight, std=0.3)
    return made


def read(made, blocks=3):
    """The last block's output, and its hidden states' gradients on."""
    memory = None
    text = torch.randn(2, 8 * blocks, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for part in text.split(8, dim=1):
        part = part.requires_grad_()
        out = made(part, memory)
        memory = out.memory
    return part, out


def test_reconstruction_trains_the_compression_and_nothing_else():
    made = stack()
    block, out = read(made)
    loss = sum(report.reconstruction.sum() for report in out.reports)
    assert loss > 0
    loss.backward()
    for name, parameter in made.named_parameters():
        if ".conv." in name:
            assert parameter.grad.abs().max() > 0, name
        else:
            assert parameter.grad is None or not parameter.grad.any(), name
    assert block.grad is None or not block.grad.any()


def test_nothing_else_trains_the_compression():
    made = stack()
    _, out = read(made)
    out.hidden.square().sum().backward()
    for name, parameter in made.named_parameters():
        if ".conv." in name:
            assert parameter.grad is None or not parameter.grad.any(), name
    assert made.layers[0].key_proj.weight.grad.abs().max() > 0


def test_reconstruction_by_hand():
    """One layer, from the weights: what the queries read from the states, and from what these became, without positions."""
    made = stack().train()
    hidden = torch.randn(1, 12, D, dtype=torch.float64)
    report = made(hidden).reports[0]
    layer = made.layers[0]
    # A block of 12 is the first: groups that begin at 0, 3 and 6 - 12 - 6 > L is not - are due.
    inputs = hidden[:, :6]
    conv = layer.policy.conv
    compressed = torch.stack(
        [sum(inputs[0, first + n] @ conv.weight[:, :, n].T for n in range(RATE)) + conv.bias for first in (0, 3)]
    ).unsqueeze(0)

    def attention(memories):
        memories = layer.attention_norm(memories)
        query, key, value = (
            projection(x).unflatten(-1, (2, -1)).transpose(1, 2)
            for projection, x in (
                (layer.query_proj, layer.attention_norm(hidden)),
                (layer.key_proj, memories),
                (layer.value_proj, memories),
            )
        )
        scores = query @ key.transpose(-1, -2) / (D // 2) ** 0.5
        return (scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2)

    expected = (attention(compressed) - attention(inputs)).square().mean(dim=-1).sum(dim=1)
    torch.testing.assert_close(report.reconstruction, expected)


def test_poolings_without_parameters_learn_nothing():
    for pooling in ("mean", "max"):
        made = stack(pooling)
        _, out = read(made)
        assert all(report.reconstruction is None for report in out.reports)
        assert not list(made.layers[0].policy.parameters())


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
        ({"pooling": "min"}, "one of mean, max, conv, got min"),
        ({"span_limit": 0}, "at least 1 or none, got 0"),
    ],
)
def test_bad_arguments(settings, message):
    with pytest.raises(ValueError, match=message):
        Compressive(**{**SETTINGS, **settings})
