"""What a text costs without a neural network: an order-2 byte model, and xz.

The order-2 model knows the two bytes before the one it predicts and nothing else. Its counts are smoothed as Witten and
Bell do: a context that was followed by T different bytes gives the next shorter context the weight of T occurrences,

    P_k(c | context) = (C(context c) + T(context) P_{k-1}(c | shorter context)) / (C(context) + T(context)),

from k = 2 down to the uniform P_{-1} = 1/256. A context that never occurred has C = T = 0 and is the shorter one.
"""

import lzma

import numpy as np

SYMBOLS = 256
CHUNK = 1 << 22

# A text is read as if it followed an empty line, so that its first byte has a context too.
START = b"\n\n"

# As far back as xz -9 looks: text in front of that changes nothing.
XZ_WINDOW = 1 << 26


def trigrams(stream, chunk=CHUNK):
    """The byte a·b·c ending at every position of a binary stream, as integers (a·256 + b)·256 + c, in arrays of up to `chunk`."""
    last = START
    while data := stream.read(chunk):
        joined = np.frombuffer(last + data, dtype=np.uint8).astype(np.int64)
        yield (joined[:-2] * SYMBOLS + joined[1:-1]) * SYMBOLS + joined[2:]
        last = (last + data)[-2:]


class ContextModel:
    """The order-2 model of the bytes of a stream; an empty stream gives the uniform model."""

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
        """P_2 of the last byte of each trigram, for an array of them as `trigrams` gives it."""
        a, b, c = index // SYMBOLS**2, index // SYMBOLS % SYMBOLS, index % SYMBOLS
        total, followers = self.total[a, b], self.followers[a, b]
        shorter = self.order_1[b, c]
        seen = self.counts[a, b, c] + followers * shorter
        return np.where(total > 0, seen / np.maximum(total + followers, 1), shorter)

    def bits_per_byte(self, stream, chunk=CHUNK):
        """Mean -log2 P_2 over the bytes of a stream. Raises ValueError where there are none."""
        bits, length = 0.0, 0
        for index in trigrams(stream, chunk):
            bits -= np.log2(self.probability(index)).sum()
            length += index.size
        if not length:
            raise ValueError("the text to score is empty: bits per byte need at least one byte")
        return float(bits / length)


def _contexts(counts):
    """Occurrences and number of distinct followers of every context; the last axis of `counts` is the byte that follows."""
    return counts.sum(axis=-1), np.count_nonzero(counts, axis=-1)


def _interpolate(counts, shorter):
    """One step of the recursion for a whole table: counts [..., 256], shorter broadcasts to it."""
    total, followers = (n[..., None] for n in _contexts(counts))
    seen = (counts + followers * shorter) / np.maximum(total + followers, 1)
    return np.where(total > 0, seen, shorter)


def xz_bits_per_byte(test, train=None):
    """Bits per byte of `xz -9e` on the bytes `test`; given `train`, what they add to the size of that text in front of them."""
    if not test:
        raise ValueError("the text to score is empty: bits per byte need at least one byte")
    front = train[-XZ_WINDOW:] if train else b""
    size = _xz_size(front + test) - (_xz_size(front) if front else 0)
    return 8 * size / len(test)


def _xz_size(data):
    # In pieces, so that Ctrl-C need not wait for the end.
    compressor = lzma.LZMACompressor(preset=9 | lzma.PRESET_EXTREME)
    pieces = (data[i : i + (1 << 20)] for i in range(0, len(data), 1 << 20))
    return sum(len(compressor.compress(piece)) for piece in pieces) + len(compressor.flush())
