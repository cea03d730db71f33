"""The mask for valid UTF-8, against Python's own decoder."""

import functools
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_expire.inference.utf8 import Utf8Mask
from fairseq_expire.tokenizers.bytes_and_chars import byte_symbol
from fairseq_expire.tokenizers.dictionary import SPECIAL_SYMBOLS

EOS = 2
ALL = Utf8Mask([*SPECIAL_SYMBOLS, *(byte_symbol(byte) for byte in range(256))])
# The first and last byte of each range of UTF-8, and their neighbours.
FIRSTS = (0x00, 0x80, 0x90, 0xA0, 0xC0, 0xC2, 0xE0, 0xE1, 0xED, 0xEE, 0xF0, 0xF1, 0xF4, 0xF5, 0xFF)
EDGES = sorted({min(255, max(0, first + step)) for first in FIRSTS for step in (-1, 0, 1)})


def ids(text):
    return torch.tensor([[byte + len(SPECIAL_SYMBOLS) for byte in text]], dtype=torch.int64)


@functools.cache
def missing(text):
    """Counts the bytes that the last character of a text lacks, by trying; None if no bytes complete it."""
    # Python's incremental decoder would accept the beginning of a surrogate. If any byte fits, one of these two does.
    for length in range(4):
        for more in itertools.product((0x80, 0xBF), repeat=length):
            try:
                (text + bytes(more)).decode("utf-8")
            except UnicodeDecodeError:
                continue
            return length
    return None


def expected(text, left):
    """[256] bool, True for the bytes after which the character can still be completed."""
    return torch.tensor([(need := missing(text + bytes([byte]))) is not None and need < left for byte in range(256)])


def test_every_state_against_python():
    """Tries all 256 bytes after beginnings of characters from every range."""
    beginnings = [bytes(parts) for length in (1, 2) for parts in itertools.product(EDGES, repeat=length)]
    beginnings += [b"\xf0\x9f\x98", b"\xf4\x8f\xbf", b"\xf1\x80\x80", b"\xe2\x82\xac", b"\xf0\x9f\x98\x80", b""]
    inside = [text for text in beginnings if missing(text) not in (None, 0)]
    assert {missing(text) for text in inside} == {1, 2, 3} and len(inside) > 40
    between = [text for text in beginnings if missing(text) == 0]
    for text in [*inside, *between[::40]]:
        for left in (1, 2, 3, 4, 99):
            if missing(text) > left:
                with pytest.raises(ValueError, match=f"which {left} more tokens of this dictionary cannot complete"):
                    ALL(ids(text), left)
                continue
            allowed = ALL(ids(text), left)[0]
            assert torch.equal(allowed[len(SPECIAL_SYMBOLS) :], expected(text, left)), (text, left)
            assert allowed[: len(SPECIAL_SYMBOLS)].tolist() == [missing(text) == 0] * len(SPECIAL_SYMBOLS)


def test_random_choices_are_utf8(long):
    """Tokens drawn from the masks give UTF-8 after any text, also one that ends inside a character."""

    @settings(max_examples=2000 if long else 60, deadline=None)
    @given(st.text(max_size=3), st.integers(0, 3), st.integers(1, 12), st.randoms(use_true_random=False))
    def check(text, cut, length, random):
        begun = text.encode()
        begun = begun[: len(begun) - cut]
        written = bytearray(begun)
        if missing(begun) > length:
            return
        for left in range(length, 0, -1):
            allowed = ALL(ids(written), left)[0].nonzero().flatten().tolist()
            # Most characters are not ASCII.
            others = [index - 4 for index in allowed if index >= 4 + 128]
            written.append(random.choice(others if others and random.random() < 0.8 else [max(0, allowed[-1] - 4)]))
        written.decode("utf-8")
        assert len(written) == len(begun) + length

    check()


def test_a_batch_equals_its_rows():
    texts = [b"aaa", "aé".encode(), "a€".encode()[1:], b"a\xe2\x82", b"\xf0\x9f\x98", b"x\xf0\x9f", b"\xc3"]
    texts = [b" " * (4 - len(text)) + text for text in texts]
    tokens = torch.cat([ids(text) for text in texts])
    assert ALL.needed(tokens).tolist() == [0, 0, 0, 1, 1, 2, 1]
    rows = torch.cat([ALL(row[None], 2) for row in tokens])
    assert torch.equal(ALL(tokens, 2), rows)
    assert rows[:, EOS].tolist() == [True, True, True, False, False, False, False]
    assert ALL(torch.zeros(2, 0, dtype=torch.int64), 1).shape == (2, 260)


def test_a_character_ends_at_a_special_symbol():
    inside = ids(b"a\xe2\x82")
    assert ALL.needed(torch.cat([inside, torch.tensor([[EOS]])], dim=1)).item() == 0
    assert ALL(torch.cat([torch.tensor([[EOS]]), inside], dim=1), 1)[0].nonzero().numel() == 64


@pytest.mark.parametrize("text", [b"\x80", b"\xff", b"\xe0\x80", b"\xc3\xc3\xa9", b"\xf0\x9fabc"])
def test_invalid_bytes_count_as_ended(text):
    assert ALL.needed(ids(text)).item() == 0


def test_no_character_is_begun_without_bytes_to_complete_it():
    """The only continuation byte of this dictionary is 0x82, which cannot follow 0xE0."""
    mask = Utf8Mask([*SPECIAL_SYMBOLS, *(byte_symbol(byte) for byte in (65, 0xE2, 0xE0, 0x82, 0xED, 0xF4))])
    assert mask(torch.tensor([[4]]), 9)[0].tolist() == [True] * 4 + [True, True, False, False, True, True]
    assert mask(torch.tensor([[4, 5]]), 9)[0].tolist() == [False] * 7 + [True, False, False]
    assert mask(torch.tensor([[4]]), 2)[0].tolist() == [True] * 4 + [True] + [False] * 5


def test_other_symbols_than_bytes():
    with pytest.raises(ValueError, match="expected a name of a byte"):
        Utf8Mask([*SPECIAL_SYMBOLS, "word"])
