"""Generated text: sampled as asked, valid UTF-8 when asked, without padding."""

import math

import pytest
import torch
from small_models import text_model

from fairseq_expire.inference.sampling import Sampler


@pytest.fixture(scope="module")
def model():
    return text_model()


def frequencies(sampler, log_probs, count=4000):
    return torch.bincount(torch.tensor([sampler(log_probs) for _ in range(count)]), minlength=len(log_probs)) / count


@pytest.mark.parametrize(
    "asked, expected",
    [
        ({}, [0.1, 0.4, 0.2, 0.3]),
        ({"temperature": 0.5}, [0.01 / 0.3, 0.16 / 0.3, 0.04 / 0.3, 0.09 / 0.3]),
        ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_k": 9}, [0.1, 0.4, 0.2, 0.3]),
        ({"top_p": 0.69}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_p": 0.71}, [0, 4 / 9, 2 / 9, 3 / 9]),
        ({"top_p": 1.0}, [0.1, 0.4, 0.2, 0.3]),
        ({"top_k": 3, "top_p": 0.5}, [0, 4 / 7, 0, 3 / 7]),
    ],
    ids=str,
)
def test_tokens_are_sampled_by_their_probability(asked, expected):
    log_probs = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()
    found = frequencies(Sampler(seed=0, **asked), log_probs)
    for share, wanted in zip(found.tolist(), expected):
        # Five standard deviations.
        assert abs(share - wanted) <= 5 * math.sqrt(wanted * (1 - wanted) / 4000)


def test_impossible_tokens_are_never_sampled():
    log_probs = torch.tensor([-torch.inf, -9.0, -torch.inf, 0.0])
    assert frequencies(Sampler(seed=0, temperature=50.0), log_probs)[[0, 2]].tolist() == [0, 0]


def test_a_seed_repeats_and_without_one_the_global_generator_counts(model):
    one, two, other = ("".join(model.generate("ab", max_tokens=40, seed=seed)) for seed in (1, 1, 2))
    assert one == two != other
    torch.manual_seed(7)
    first = "".join(model.generate("ab", max_tokens=40))
    torch.manual_seed(7)
    assert "".join(model.generate("ab", max_tokens=40, temperature=1.0)) == first != one


def test_pieces_are_generated_on_demand(model):
    """Nothing is read or generated before a piece is asked for."""
    stream = model.stream()
    pieces = stream.generate(max_tokens=None, utf8=True, seed=0)
    assert stream.tokens_read == 0
    written = [next(pieces) for _ in range(50)]
    assert all(written) and 50 <= stream.tokens_read < 250
    assert len("".join(written).encode()) <= stream.tokens_read


@pytest.mark.parametrize("prompt", ["", "plain", "\u4e2d".encode()[:2], "\U0001f600".encode()[:1]], ids=repr)
def test_utf8_is_valid_and_complete(model, prompt):
    """Without the option the output is not UTF-8, since this model predicts bytes almost uniformly."""
    begun = prompt if isinstance(prompt, bytes) else prompt.encode()
    unmasked = "".join(model.generate(prompt, max_tokens=50, seed=0))
    assert "\ufffd" in unmasked
    for seed in range(6):
        stream = model.stream()
        stream.feed(prompt)
        written = "".join(stream.generate(max_tokens=50 + seed, utf8=True, seed=seed))
        assert stream.tokens_read == len(begun) + 50 + seed and "\ufffd" not in written
        # A character that the prompt begins is completed; special symbols are no text.
        assert written.encode().startswith(b"" if begun.isascii() else begun)
        assert 45 + seed <= len(written.encode()) <= 50 + seed + len(begun)


def test_utf8_of_a_prompt_that_cannot_be_completed(model):
    with pytest.raises(ValueError, match="which 1 more tokens of this dictionary cannot complete"):
        model.generate(b"\xf0\x9f", max_tokens=1, utf8=True)
    assert len("".join(model.generate(b"\xf0\x9f", max_tokens=2, utf8=True, seed=0))) == 1


def test_stopping_at_eos_is_an_option():
    model = text_model(level="words", symbols=["a", "b"])
    ended = ["".join(model.generate("a", max_tokens=60, seed=seed, stop_at_eos=True)) for seed in range(5)]
    assert not any("\n" in text for text in ended) and len(set(map(len, ended))) > 1
    assert any("\n" in "".join(model.generate("a", max_tokens=60, seed=seed)) for seed in range(5))


def test_padding_is_never_generated():
    model = text_model(level="words", symbols=["a"])
    with torch.no_grad():
        model.model.output_projection.weight[:2] = 40 * model.model.output_projection.weight[4]
    words = "".join(model.generate("a", max_tokens=200, seed=0, temperature=3.0)).split()
    assert words and set(words) <= {"a", "<unk>"}


@pytest.mark.parametrize(
    "asked, message",
    [
        ({"temperature": 0}, "temperature .* more than 0, got 0"),
        ({"temperature": float("inf")}, "temperature .* more than 0, got inf"),
        ({"temperature": float("nan")}, "temperature .* got nan"),
        ({"top_k": 0}, "top_k .* at least 1, got 0"),
        ({"top_p": 0}, "top_p .* got 0"),
        ({"top_p": 1.5}, "top_p .* got 1.5"),
        ({"greedy": True, "top_k": 3}, "leave temperature, top_k, top_p and seed out"),
        ({"max_tokens": 0}, "max_tokens .* got 0"),
        ({"block": 0}, "block .* got 0"),
    ],
    ids=str,
)
def test_wrong_options_raise_before_the_first_piece(model, asked, message):
    with pytest.raises(ValueError, match=message):
        model.generate("a", **asked)


def test_utf8_is_for_bytes():
    with pytest.raises(ValueError, match="utf8 is for models of bytes; the symbols of this one are words"):
        text_model(level="words", symbols=["a"]).generate("a", utf8=True)


def test_nothing_to_score(model):
    with pytest.raises(ValueError, match="nothing to score"):
        model.score("")
    with pytest.raises(ValueError, match=r"block .* got 0"):
        model.score("a", block=0)
