import io
from itertools import pairwise

import pytest

from fairseq_expire.corpora.sources import FileSlice
from fairseq_expire.tokenizers.bytes_and_chars import Chars
from fairseq_expire.tokenizers.units import at_byte, at_char, at_line, at_word, split_into_units
from fairseq_expire.tokenizers.words import LINE_END, _words

AWKWARD = "a\r\nb\r\rc\n\r\n\0\x85\x1c d\u2028e\u2029f\ufeff\u2581\xa0\U0001f600e\u0301\U0010ffff\x0b\x0c\r"
LONG = "one two\n" + "x" * 200_000 + " y\n"
SIZES = [1, 2, 3, 4, 5, 7, 1000]


def whole(path):
    return FileSlice(path, 0, path.stat().st_size)


def units_of(path, text, unit_bytes, boundary, start=0):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    piece = FileSlice(path, start, path.stat().st_size)
    return list(split_into_units([piece], unit_bytes=unit_bytes, boundary=boundary))


@pytest.mark.parametrize("unit_bytes", SIZES)
@pytest.mark.parametrize("boundary", [at_byte, at_char, at_line, at_word])
@pytest.mark.parametrize("text", [AWKWARD, LONG], ids=["awkward", "long"])
def test_units_join_to_the_piece(tmp_path, text, boundary, unit_bytes):
    if text is LONG:
        unit_bytes *= 1000
    units = units_of(tmp_path / "a", text, unit_bytes, boundary)
    assert b"".join(unit.read() for unit in units) == text.encode()
    assert all(one.stop == next.start for one, next in pairwise(units)) and all(unit.num_bytes > 0 for unit in units)
    assert (
        [unit.ends_piece for unit in units] == [unit.ends_file for unit in units] == [False] * (len(units) - 1) + [True]
    )
    if boundary is at_byte:
        assert {unit.num_bytes for unit in units[:-1]} <= {unit_bytes}
    else:
        assert "".join(unit.decode(unit.read()) for unit in units) == text
        # Never between the two halves of a line end.
        assert not any(a.read().endswith(b"\r") and b.read().startswith(b"\n") for a, b in pairwise(units))
    if boundary is at_word:
        assert all(unit.read()[-1:] in (b" ", b"\n") for unit in units[:-1])


def test_a_piece_in_a_file_ends_nothing_but_itself(tmp_path):
    (tmp_path / "a").write_bytes(b"0123456789")
    [unit] = split_into_units([FileSlice(tmp_path / "a", 3, 7, ends_file=False)], unit_bytes=10, boundary=at_byte)
    assert unit.read() == b"3456" and unit.ends_piece and not unit.ends_file


@pytest.mark.parametrize("unit_bytes", SIZES)
@pytest.mark.parametrize("ending", ["", "x", "\n", "\r", "\r\n", "\n\n", "\r\r", " "], ids=repr)
def test_lines_are_those_of_text_mode(tmp_path, ending, unit_bytes):
    units = units_of(tmp_path / "a", AWKWARD + ending, unit_bytes, at_word)
    lines, line = [], []
    for word in [word for unit in units for word in _words(unit)]:
        if word == LINE_END:
            lines.append(line)
            line = []
        else:
            line.append(word)
    assert not line
    assert lines == [text.split() for text in io.StringIO(AWKWARD + ending, newline=None)]


@pytest.mark.parametrize("unit_bytes", SIZES)
@pytest.mark.parametrize(
    "data, offset",
    [
        (b"abc\xff", 3),
        ("é€".encode() + b"\x80", 5),
        ("é€".encode() + b"\xf0\x9f\x98", 5),
        (b"\xe2\x82", 0),
        (b"\xe2\x82A", 0),
        (b"\xf0\x9f\x98\xc3\xa9", 0),
        (b"ab\xed\xa0\x80", 2),
        (b"0123456\xc0\x80", 7),
        (b"\x80" * 20, 0),
    ],
)
@pytest.mark.parametrize("boundary", [at_char, at_line, at_word])
def test_the_first_bad_byte_is_named(tmp_path, data, offset, unit_bytes, boundary):
    for start in (0, 2):
        units = units_of(tmp_path / "bad", b"12" + data, unit_bytes, boundary, start=start)
        with pytest.raises(ValueError, match=f"bad: not UTF-8 at byte {offset + 2} .*take bytes for symbols"):
            for unit in units:
                unit.decode(unit.read())


def test_a_file_that_shrinks_is_noticed(tmp_path):
    units = units_of(tmp_path / "a", "0123456789", 4, at_byte)
    (tmp_path / "a").write_bytes(b"01234")
    with pytest.raises(ValueError, match="a: ended at byte 5, it had 8 before"):
        [unit.read() for unit in units]


@pytest.mark.parametrize("unit_bytes", SIZES)
def test_line_ends_are_normalised_whatever_the_units(tmp_path, unit_bytes):
    units = units_of(tmp_path / "a", AWKWARD, unit_bytes, at_char)
    texts = [Chars(line_ends="normalise").read(unit)[0] for unit in units]
    assert b"".join(texts).decode() == AWKWARD.replace("\r\n", "\n").replace("\r", "\n")
