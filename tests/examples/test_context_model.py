"""The baselines of the demo: the order-2 model against loops, and xz."""

import io
import lzma
import math
import random
from collections import defaultdict

import context_model
import numpy as np
import pytest

WORDS = b"the span of a memory is how long it stays alive\n".split(b" ")


def text(length, seed):
    rng = random.Random(seed)
    return b" ".join(rng.choices(WORDS, k=length))[:length]


class Loops:
    """The order-2 model with dictionaries and loops."""

    def __init__(self, train):
        self.counts = defaultdict(lambda: defaultdict(int))
        data = b"\n\n" + train
        for i in range(2, len(data)):
            for order in range(3):
                self.counts[data[i - order : i]][data[i]] += 1

    def probability(self, context, byte):
        shorter = self.probability(context[1:], byte) if context else 1 / 256
        followers = self.counts.get(context)
        if not followers:
            return shorter
        return (followers.get(byte, 0) + len(followers) * shorter) / (sum(followers.values()) + len(followers))

    def bits_per_byte(self, test):
        data = b"\n\n" + test
        return -sum(math.log2(self.probability(data[i - 2 : i], data[i])) for i in range(2, len(data))) / len(test)


@pytest.mark.parametrize(
    "train, test",
    [
        pytest.param(text(3000, 0), text(500, 1), id="same words"),
        pytest.param(text(300, 0), bytes(range(256)), id="unseen bytes"),
        pytest.param(b"a", b"ab", id="one byte"),
        pytest.param(b"", b"anything", id="nothing to learn from"),
        pytest.param(b"\xff\x00\xff\xff", b"\xff\xff\x00", id="extreme bytes"),
    ],
)
def test_the_order_2_model_equals_loops(train, test):
    fast = context_model.ContextModel(io.BytesIO(train)).bits_per_byte(io.BytesIO(test))
    assert fast == pytest.approx(Loops(train).bits_per_byte(test), rel=1e-12)


def test_chunk_borders_change_nothing():
    train, test = text(30, 2), text(21, 3)
    whole = context_model.ContextModel(io.BytesIO(train))
    for chunk in (1, 2, 7):
        pieces = context_model.ContextModel(io.BytesIO(train), chunk=chunk)
        assert np.array_equal(pieces.counts, whole.counts)
        assert pieces.bits_per_byte(io.BytesIO(test), chunk=chunk) == pytest.approx(
            whole.bits_per_byte(io.BytesIO(test))
        )


@pytest.mark.parametrize("context", [b"th", b"e ", b"\n\n", b"hz", b"zz"], ids=repr)
def test_probabilities_sum_to_one(context):
    model = context_model.ContextModel(io.BytesIO(text(2000, 4)))
    index = (context[0] * 256 + context[1]) * 256 + np.arange(256)
    probability = model.probability(index)
    assert probability.min() > 0
    assert probability.sum() == pytest.approx(1, abs=1e-12)


def test_uniform_without_training_text():
    model = context_model.ContextModel(io.BytesIO(b""))
    assert model.bits_per_byte(io.BytesIO(b"any text")) == pytest.approx(8)


def test_xz_alone_is_the_compressed_size():
    data = text(5000, 5)
    expected = 8 * len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)) / len(data)
    assert context_model.xz_bits_per_byte(data) == expected
    assert context_model.xz_bits_per_byte(data, b"") == expected


def test_xz_learns_from_the_training_text():
    data = random.Random(6).randbytes(2000)
    assert context_model.xz_bits_per_byte(data) > 8
    assert context_model.xz_bits_per_byte(data, train=data) < 1


def test_empty_test_text_is_an_error():
    with pytest.raises(ValueError, match="empty"):
        context_model.ContextModel(io.BytesIO(b"a")).bits_per_byte(io.BytesIO(b""))
    with pytest.raises(ValueError, match="empty"):
        context_model.xz_bits_per_byte(b"", b"train")
