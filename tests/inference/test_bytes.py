"""Arbitrary bytes as input and output of byte models, as bytes or as a str with ``surrogateescape``."""

import itertools
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import text_model

# Random bytes are hardly ever UTF-8; the second strategy gives UTF-8 that may begin inside a character.
TEXTS = st.one_of(
    st.binary(min_size=1, max_size=40),
    st.text(min_size=1, max_size=12).map(lambda text: text.encode("utf-8", "replace")[1:] or b"a"),
)


@pytest.fixture(scope="module")
def model():
    return text_model()


def as_str(content):
    return content.decode("utf-8", "surrogateescape")


@settings(max_examples=60, deadline=None)
@given(content=TEXTS)
def test_any_bytes_are_scored_as_their_own_symbols(model, content):
    expected = [
        model.tokenizer.dictionary.index(symbol) for symbol in (model.tokenizer.symbols[4 + byte] for byte in content)
    ]
    for text in (content, as_str(content), bytearray(content), memoryview(content)):
        score = model.score(text)
        assert score.ids.tolist() == expected
    assert model.tokenizer.decode_bytes(score.ids) == content
    assert np.array_equal(model.score(content).token_bits, model.score(as_str(content)).token_bits)


@settings(max_examples=40, deadline=None)
@given(content=TEXTS, cuts=st.lists(st.integers(0, 40), max_size=4))
def test_streams_take_any_bytes_in_parts(model, content, cuts):
    text, streams = as_str(content), [model.stream(), model.stream()]
    borders = sorted({0, len(content), *(cut for cut in cuts if cut < len(content))})
    for start, stop in itertools.pairwise(borders):
        streams[0].feed(content[start:stop])
    # A str is cut between characters, some of which stand for one byte.
    borders = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    for start, stop in itertools.pairwise(borders):
        streams[1].feed(text[start:stop])
    assert [stream.tokens_read for stream in streams] == [len(content)] * 2
    first, second = (stream.next_distribution().log_probs for stream in streams)
    np.testing.assert_allclose(first, second, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(content=TEXTS, seed=st.integers(0, 100))
def test_pieces_are_exactly_the_generated_bytes(model, content, seed):
    """The pieces hold the bytes of the generated tokens, also if the prompt ends inside a character."""
    stream, read = model.stream(), []
    stream.feed(content)
    feed = stream._read
    stream._read = lambda ids: (read.extend(ids), feed(ids))[1]
    pieces = list(stream.generate(max_tokens=20, seed=seed, errors="surrogateescape"))
    written = "".join(pieces).encode("utf-8", "surrogateescape")
    assert len(read) == 20 and written == model.tokenizer.decode_bytes(
        index for index in read if index != model.tokenizer.eos
    )
    again = "".join(model.generate(as_str(content), max_tokens=20, seed=seed, errors="surrogateescape"))
    assert again == "".join(pieces)
    for text in (content, as_str(content)):
        replaced = "".join(model.generate(text, max_tokens=20, seed=seed))
        replaced.encode("utf-8")
    assert os.fsencode(again) == written


@pytest.mark.parametrize("level", ["chars", "words"])
def test_other_models_refuse_bytes_that_are_not_utf8(level):
    model = text_model(level=level, symbols=["a", "b", "\u00e9"])
    for text in (b"a \xff b", "a \udcff b"):
        for use in (model.score, lambda text: list(model.generate(text)), lambda text: model.stream().feed(text)):
            with pytest.raises(
                ValueError, match=r"the text given: not UTF-8 at byte 2 .*take bytes for symbols"
            ) as error:
                use(text)
            assert "\n" not in str(error.value)
    # Escaped bytes that are UTF-8 together are accepted.
    assert model.score("a \udcc3\udca9").ids.tolist() == model.score("a \u00e9").ids.tolist()


@pytest.mark.parametrize("text", ["a\ud800", "\udc7fa", "\ud83d\ude00"], ids=ascii)
def test_surrogates_that_stand_for_no_byte(model, text):
    with pytest.raises(
        ValueError, match=r"the text given: U\+D[0-9A-F]{3} at character \d is half of a surrogate pair"
    ):
        model.score(text)


@pytest.mark.parametrize("text", [5, None, ["a"], 1.5], ids=repr)
def test_values_that_are_not_text(model, text):
    for use in (model.score, model.generate, model.stream().feed):
        with pytest.raises(ValueError, match="a text is str or bytes, got"):
            use(text)


def test_unknown_error_handling(model):
    with pytest.raises(ValueError, match="errors is 'strict', expected one of replace, surrogateescape"):
        model.generate("a", errors="strict")
