"""Streams and their continuations, against reading the whole text again for each token."""

import copy

import numpy as np
import pytest
import safetensors.torch
import torch
from small_models import POLICIES, text_model

TEXT = "a na\u00efve \u4e2d text, \U0001f600 and more of it: " * 4


@pytest.fixture(scope="module", params=POLICIES)
def model(request):
    return text_model(request.param)


def log_probs(model, ids):
    """[N, V] after </s> and after each token, from one long block and no memory."""
    with torch.no_grad():
        return model.model(torch.tensor([[model.tokenizer.eos, *ids]])).log_probs[0]


def test_scores_do_not_depend_on_the_block(model):
    ids = model.tokenizer.encode(TEXT)
    expected = -log_probs(model, ids)[torch.arange(len(ids)), ids].double().numpy() / np.log(2)
    for block in (1, 7, 512):
        score = model.score(TEXT, block=block)
        np.testing.assert_allclose(score.token_bits, expected, rtol=1e-4)
    assert score.bits == pytest.approx(expected.sum(), rel=1e-6)
    assert score.bits_per_token == pytest.approx(expected.mean(), rel=1e-6)
    tokens = score.tokens
    assert "".join(token.text for token in tokens) == TEXT and len(tokens) == len(TEXT.encode())
    assert tokens[0] == ("a", "a", score.token_bits[0])
    assert [token.text for token in tokens[4:6]] == ["", "\u00ef"]
    assert f"{len(ids)} tokens" in repr(score)


def test_a_text_may_come_in_parts(model):
    ids, content = model.tokenizer.encode(TEXT), TEXT.encode()
    expected = log_probs(model, ids)
    stream = model.stream(block=5)
    assert stream.tokens_read == 0
    torch.testing.assert_close(stream.next_distribution().log_probs, expected[0])
    for start in range(0, len(content), 13):
        assert stream.feed(content[start : start + 13]) == len(content[start : start + 13])
        torch.testing.assert_close(stream.next_distribution().log_probs, expected[stream.tokens_read])
    distribution = stream.next_distribution()
    best = int(expected[-1].argmax())
    torch.testing.assert_close(distribution.log_probs, expected[-1])
    assert distribution.top(3)[0] == (model.tokenizer.symbols[best], distribution.log_probs[best].item())
    assert distribution["</s>"] == distribution.log_probs[2].item() and len(distribution.top(10**6)) == 260
    with pytest.raises(KeyError):
        distribution["no such"]


def test_greedy_equals_reading_everything_again_for_each_token(model):
    """Without a prompt, and after one that is longer than any span."""
    for prompt in ("", TEXT):
        ids = model.tokenizer.encode(prompt)
        written = []
        for _ in range(60):
            scores = log_probs(model, ids + written)[-1]
            scores[[0, 1]] = -torch.inf
            written.append(int(scores.argmax()))
        expected = model.tokenizer.decode(ids + written)[len(prompt) :]
        for block in (3, 512):
            assert "".join(model.generate(prompt, max_tokens=60, greedy=True, block=block)) == expected
        assert "".join(model.generate(prompt, max_tokens=60, top_k=1, seed=5)) == expected
        assert "".join(model.generate(prompt, max_tokens=60, top_p=1e-9)) == expected
        assert "".join(model.generate(prompt, max_tokens=60, temperature=1e-9)) == expected


def test_memory_stays_bounded(model):
    """The memory of a long text holds the states that are alive, and some room to grow."""
    stream, largest = model.stream(block=64), []
    for _ in range(12):
        for _ in range(4):
            stream.feed(TEXT)
        largest.append(stream.memory_bytes)
        for _ in stream.generate(max_tokens=30, seed=1):
            largest[-1] = max(largest[-1], stream.memory_bytes)
    assert max(stream.memory_sizes) <= 44
    assert max(largest[6:]) <= max(largest[:6])
    # At most 44 memories, rounded up to 64, and a block; each has a key and a value (and the input), a span and an age.
    assert max(largest) <= 2 * (64 + 64 + 64) * (3 * 16 * 4 + 2 * 4 + 8 + 1)


def test_a_restored_stream_continues_exactly(model, tmp_path):
    stream = model.stream()
    # The cut is inside a character.
    stream.feed(TEXT.encode()[:44])
    stream.save(tmp_path / "state")
    state = stream.state_dict()
    stream.feed(TEXT.encode()[44:])
    expected, after = stream.next_distribution().log_probs, "".join(stream.generate(max_tokens=20, seed=1))
    restored = model.stream()
    restored.feed("something else")
    restored.restore(tmp_path / "state")
    for other in (
        restored,
        model.stream(state),
        model.stream(dict(torch.load(saved(state, tmp_path), weights_only=True))),
    ):
        assert other.tokens_read == 44
        other.feed(TEXT.encode()[44:])
        torch.testing.assert_close(other.next_distribution().log_probs, expected)
        assert "".join(other.generate(max_tokens=20, seed=1)) == after
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("state")] == ["state"]


def saved(state, folder):
    torch.save(state, folder / "plain.pt")
    return folder / "plain.pt"


def test_an_unfinished_word_is_pending_and_is_saved(tmp_path):
    model = text_model(level="words", symbols=["the", "cat", "sat"])
    stream = model.stream()
    assert stream.feed("the ca") == 1 and stream.pending == b"ca"
    stream.save(tmp_path / "state")
    assert stream.feed("t sat\nthe cat") == 4
    assert stream.flush() == 1 and stream.pending == b""
    restored = model.stream()
    restored.restore(tmp_path / "state")
    assert restored.pending == b"ca" and restored.feed("t sat\nthe cat") == 4
    ids = [model.tokenizer.dictionary.index(word) for word in ("the", "cat", "sat", "</s>", "the", "cat")]
    torch.testing.assert_close(stream.next_distribution().log_probs, log_probs(model, ids)[-1])
    written = "".join(model.generate("the cat", max_tokens=12, seed=3))
    # White space stands before the first word.
    assert written[0] in " \n" and written.split() and set(written.split()) <= {"the", "cat", "sat", "<unk>"}


def test_states_that_are_refused(model, tmp_path):
    stream = model.stream()
    stream.feed("abc")
    stream.save(tmp_path / "state")
    before = stream.next_distribution().log_probs
    with pytest.raises(ValueError, match="state: the state of a stream goes on only with the weights it was made with"):
        text_model(seed=1).stream().restore(tmp_path / "state")
    with pytest.raises(ValueError, match="not the state of a stream: expected features, pending"):
        stream.load_state_dict({"features": torch.zeros(1)})
    state = stream.state_dict()
    with pytest.raises(ValueError, match="written by an earlier version"):
        stream.load_state_dict({**state, "held": state["pending"]})
    with pytest.raises(ValueError, match="not the state of a memory"):
        stream.load_state_dict({name: value for name, value in state.items() if name != "memory.1.age"})
    with pytest.raises(
        ValueError, match=r"not the state of a stream: expected features \[1, 1, \d+\], got \[1, 1, 3\]"
    ):
        stream.load_state_dict({**state, "features": state["features"][..., :3]})
    with pytest.raises(ValueError, match="only with the weights it was made with, their span_limit and their"):
        limited = copy.deepcopy(model)
        vars(limited).pop("fingerprint", None)
        for layer in limited.model.stack.layers:
            layer.policy.span_limit = 3
        limited.stream().load_state_dict(state)
    wrong = {**state, "memory.0.keys": torch.zeros(1, *state["memory.0.age"].shape[1:], 5)}
    with pytest.raises(ValueError, match="width 5"):
        stream.load_state_dict(wrong)
    content = (tmp_path / "state").read_bytes()
    for damaged in (b"", content[:100], b"\0" * 200, content[:-5]):
        (tmp_path / "damaged").write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged: not the state of a stream, or damaged"):
            stream.restore(tmp_path / "damaged")
    safetensors.torch.save_file({"weights": torch.zeros(4)}, tmp_path / "damaged")
    with pytest.raises(ValueError, match="damaged: not the state of a stream"):
        stream.restore(tmp_path / "damaged")
    with pytest.raises(FileNotFoundError):
        stream.restore(tmp_path / "none")
    assert torch.equal(stream.next_distribution().log_probs, before)
