"""The decoder as fairseq's generator calls it: a token at a time, with a memory that follows the beam."""

import commands
import pytest
import torch
from building import build

from fairseq_expire.modules import Memory

OPTIONS = {
    "expire_span_lm": ["--max-span", "40", "--span-ramp", "8", "--span-init", "9"],
    "transformer_xl_lm": ["--max-span", "9"],
    "adaptive_span_lm": ["--max-span", "20", "--span-ramp", "4", "--span-init", "7"],
    "compressive_transformer_lm": ["--max-span", "8", "--compressed-size", "3", "--compression-rate", "3"],
}


@pytest.fixture(scope="module", params=[*OPTIONS, "adaptive softmax"])
def decoder(request):
    torch.manual_seed(0)
    arch = request.param if request.param in OPTIONS else "expire_span_lm"
    more = [] if request.param in OPTIONS else ["--adaptive-softmax-cutoff", "20,50"]
    model = build(*commands.MODEL, "--position-range", "6", *OPTIONS[arch], *more, arch=arch).eval()
    for layer in model.decoder.model.stack.layers:
        if arch == "expire_span_lm":
            # So that spans differ.
            torch.nn.init.normal_(layer.policy.predictor.weight, std=0.3)
    with torch.no_grad():
        yield model.decoder


def text(rows, length, seed=0):
    return torch.randint(4, 100, (rows, length), generator=torch.Generator().manual_seed(seed))


def test_token_by_token_is_one_long_block(decoder):
    tokens = text(3, 150)
    whole, _ = decoder(tokens)
    state = {}
    first, _ = decoder.forward(tokens[:, :5], encoder_out=None, incremental_state=state)
    seen = [first]
    for step in range(6, tokens.size(1) + 1):
        scores, extra = decoder(tokens[:, :step], incremental_state=state)
        assert scores.size(1) == 1 and extra["attn"] is None
        seen.append(scores)
    torch.testing.assert_close(torch.cat(seen, dim=1), whole)
    # A memory follows what is alive, not what was read.
    assert max(extra["memory"].sizes) <= 64 + 1


def test_reordered_memory_reads_the_reordered_text(decoder):
    """Hypotheses are picked, repeated and dropped, as in beam search, and each goes on with its own past."""
    generator = torch.Generator().manual_seed(1)
    tokens, state = text(4, 1), {}
    for step in range(120):
        scores, _ = decoder(tokens, incremental_state=state)
        rows = 4 if step < 80 else 2
        order = torch.randint(0, len(tokens), (rows,), generator=generator)
        if step % 5 == 0:
            order = torch.arange(len(tokens))
        decoder.reorder_incremental_state_scripting(state, order)
        tokens = torch.cat([tokens[order], text(len(order), 1, seed=step)], dim=1)
    scores, _ = decoder(tokens, incremental_state=state)
    torch.testing.assert_close(scores, decoder(tokens)[0][:, -1:])


def test_a_state_may_start_from_a_memory(decoder):
    tokens = text(2, 60)
    whole, _ = decoder(tokens)
    memory = decoder(tokens[:, :40])[1]["memory"]
    for given, done in ((tokens, 40), (tokens[:, 40:], 0)):
        state = {}
        decoder.start_from(state, memory, done)
        torch.testing.assert_close(decoder(given, incremental_state=state)[0], whole[:, 40:])
        assert decoder.memory_in(state).done == given.size(1)


def test_rows_read_by_themselves_go_on_side_by_side(decoder):
    tokens = text(3, 60)
    whole, _ = decoder(tokens)
    memories = [decoder(row[None, :40])[1]["memory"] for row in tokens]
    scores, _ = decoder(tokens[:, 40:], memory=Memory.cat(memories))
    torch.testing.assert_close(scores, whole[:, 40:])
    # They may have read different numbers of tokens.
    lengths = [40, 33, 21]
    memories = [decoder(row[None, :length])[1]["memory"] for row, length in zip(tokens, lengths)]
    rest = torch.stack([row[length : length + 20] for row, length in zip(tokens, lengths)])
    scores, _ = decoder(rest, memory=Memory.cat(memories))
    expected = torch.stack([row[length : length + 20] for row, length in zip(whole, lengths)])
    torch.testing.assert_close(scores, expected)


def test_a_beam_step_copies_a_memory_once(decoder):
    """Reordered into a tensor with room, in which the next token is appended."""
    tokens, state = text(4, 20), {}
    decoder(tokens, incremental_state=state)
    # After the prompt, which had room for another of its length.
    _, extra = decoder(text(4, 21), incremental_state=state)
    decoder.reorder_incremental_state_scripting(state, torch.tensor([1, 0, 3, 3]))
    reordered = decoder.memory_in(state).memory
    assert not any(a.keys.data_ptr() == b.keys.data_ptr() for a, b in zip(reordered.layers, extra["memory"].layers))
    decoder(text(4, 22), incremental_state=state)
    read_on = decoder.memory_in(state).memory
    assert all(a.keys.data_ptr() == b.keys.data_ptr() for a, b in zip(reordered.layers, read_on.layers))
    decoder.reorder_incremental_state_scripting(state, torch.arange(4))
    assert all(a is b for a, b in zip(decoder.memory_in(state).memory.layers, read_on.layers))


def test_what_cannot_be_read(decoder):
    tokens, state = text(2, 5), {}
    decoder(tokens, incremental_state=state)
    with pytest.raises(ValueError, match="5 tokens of each row have been read, and 5 are given"):
        decoder(tokens, incremental_state=state)
    with pytest.raises(ValueError, match="start it with start_from"):
        decoder(tokens, memory=decoder.memory_in(state).memory, incremental_state={})


def test_lengths_have_no_limit():
    """fairseq's generator compares the limits of all models of an ensemble."""
    model = build(*commands.MODEL, *OPTIONS["transformer_xl_lm"], arch="transformer_xl_lm")
    assert model.max_decoder_positions() > 1e9
