"""Baselines without a neural network: an order-2 byte model, and xz.

The order-2 model predicts a byte from the two bytes before it. Its counts have Witten-Bell smoothing: a context that T
different bytes followed gives the next shorter context the weight of T occurrences,

    P_k(c | context) = (C(context c) + T(context) P_{k-1}(c | shorter context)) / (C(context) + T(context)),

from k = 2 down to the uniform P_{-1} = 1/256. A context that never occurred has C = T = 0; the shorter one replaces it.
"""

import lzma

import numpy as np

SYMBOLS = 256
CHUNK = 1 << 22

# Every text is read as if it followed an empty line, which is the context of its first byte.
START = b"\n\n"

# The window of xz -9: text further back changes nothing.
XZ_WINDOW = 1 << 26


def trigrams(stream, chunk=CHUNK):
    """Yields the trigrams a, b, c of a binary stream as integers (a·256 + b)·256 + c, in arrays of at most `chunk`."""
    last = START
    while data := stream.read(chunk):
        joined = np.frombuffer(last + data, dtype=np.uint8).astype(np.int64)
        yield (joined[:-2] * SYMBOLS + joined[1:-1]) * SYMBOLS + joined[2:]
        last = (last + data)[-2:]


class ContextModel:
    """The order-2 model of the bytes of a stream; that of an empty stream is uniform."""

    def __init__(self, stream, chunk=CHUNK):
        counts = np.zeros(SYMBOLS**3, dtype=np.int64)
        for index in trigrams(stream, chunk):
            counts += np.bincount(index, minlength=counts.size)

        self.counts = counts.reshape(SYMBOLS, SYMBOLS, SYMBOLS)
        self.total, self.followers = _contexts(self.counts)
        bigrams = self.counts.sum(axis=0)
        order_0 = _interpolate(bigrams.sum(axis=0), np.full(SYMBOLS, 1 / SYMBOLS))
        self.order_1 = _interpolate(bigrams, order_0)

    def probability(self, index):
        """Returns P_2 of the last byte of each trigram in an array."""
        a, b, c = index // SYMBOLS**2, index // SYMBOLS % SYMBOLS, index % SYMBOLS
        total, followers = self.total[a, b], self.followers[a, b]
        shorter = self.order_1[b, c]
        seen = self.counts[a, b, c] + followers * shorter
        return np.where(total > 0, seen / np.maximum(total + followers, 1), shorter)

    def bits_per_byte(self, stream, chunk=CHUNK):
        """Returns the mean of -log2 P_2 over the bytes of a stream. Raises ValueError if it is empty."""
        bits, length = 0.0, 0
        for index in trigrams(stream, chunk):
            bits -= np.log2(self.probability(index)).sum()
            length += index.size
        if not length:
            raise ValueError("the text to score is empty: bits per byte need at least one byte")
        return float(bits / length)


def _contexts(counts):
    """Returns occurrences and distinct followers of each context; the last axis of `counts` is the following byte."""
    return counts.sum(axis=-1), np.count_nonzero(counts, axis=-1)


def _interpolate(counts, shorter):
    """Makes one step of the recursion for a whole table, [..., 256]; `shorter` broadcasts to it."""
    total, followers = (n[..., None] for n in _contexts(counts))
    seen = (counts + followers * shorter) / np.maximum(total + followers, 1)
    return np.where(total > 0, seen, shorter)


def xz_bits_per_byte(test, train=None):
    """Returns the bits per byte of `xz -9e` on the bytes `test`, alone or behind the text `train`."""
    if not test:
        raise ValueError("the text to score is empty: bits per byte need at least one byte")
    front = train[-XZ_WINDOW:] if train else b""
    size = _xz_size(front + test) - (_xz_size(front) if front else 0)
    return 8 * size / len(test)


def _xz_size(data):
    # In pieces, so that Ctrl-C takes effect at once.
    compressor = lzma.LZMACompressor(preset=9 | lzma.PRESET_EXTREME)
    pieces = (data[i : i + (1 << 20)] for i in range(0, len(data), 1 << 20))
    return sum(len(compressor.compress(piece)) for piece in pieces) + len(compressor.flush())
