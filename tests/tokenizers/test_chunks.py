"""Chunks of text: they join to the text, and are cut only where the tokenizer allows it."""

import io
from itertools import pairwise

import pytest

from fairseq_expire.tokenizers.bytes_and_chars import Chars
from fairseq_expire.tokenizers.chunks import FileSlice, at_byte, at_char, at_line, at_word, split_into_chunks
from fairseq_expire.tokenizers.words import LINE_END, _words

AWKWARD = "a\r\nb\r\rc\n\r\n\0\x85\x1c d\u2028e\u2029f\ufeff\u2581\xa0\U0001f600e\u0301\U0010ffff\x0b\x0c\r"
LONG = "one two\n" + "x" * 200_000 + " y\n"
SIZES = [1, 2, 3, 4, 5, 7, 1000]


def chunks_of(path, text, chunk_bytes, boundary, start=0):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    whole = FileSlice(path, start, path.stat().st_size)
    return list(split_into_chunks([whole], chunk_bytes=chunk_bytes, boundary=boundary))


@pytest.mark.parametrize("chunk_bytes", SIZES)
@pytest.mark.parametrize("boundary", [at_byte, at_char, at_line, at_word])
@pytest.mark.parametrize("text", [AWKWARD, LONG], ids=["awkward", "long"])
def test_chunks_join_to_the_slice(tmp_path, text, boundary, chunk_bytes):
    if text is LONG:
        chunk_bytes *= 1000
    chunks = chunks_of(tmp_path / "a", text, chunk_bytes, boundary)
    assert b"".join(chunk.read() for chunk in chunks) == text.encode()
    assert all(one.stop == next.start for one, next in pairwise(chunks)) and all(
        chunk.num_bytes > 0 for chunk in chunks
    )
    assert (
        [chunk.ends_slice for chunk in chunks]
        == [chunk.ends_file for chunk in chunks]
        == [False] * (len(chunks) - 1) + [True]
    )
    if boundary is at_byte:
        assert {chunk.num_bytes for chunk in chunks[:-1]} <= {chunk_bytes}
    else:
        assert "".join(chunk.decode(chunk.read()) for chunk in chunks) == text
        # No cut divides a line end.
        assert not any(a.read().endswith(b"\r") and b.read().startswith(b"\n") for a, b in pairwise(chunks))
    if boundary is at_word:
        assert all(chunk.read()[-1:] in (b" ", b"\n") for chunk in chunks[:-1])


def test_a_slice_in_the_middle_of_a_file_does_not_end_the_file(tmp_path):
    (tmp_path / "a").write_bytes(b"0123456789")
    [chunk] = split_into_chunks([FileSlice(tmp_path / "a", 3, 7, ends_file=False)], chunk_bytes=10, boundary=at_byte)
    assert chunk.read() == b"3456" and chunk.ends_slice and not chunk.ends_file


@pytest.mark.parametrize("chunk_bytes", SIZES)
@pytest.mark.parametrize("ending", ["", "x", "\n", "\r", "\r\n", "\n\n", "\r\r", " "], ids=repr)
def test_lines_are_those_of_text_mode(tmp_path, ending, chunk_bytes):
    chunks = chunks_of(tmp_path / "a", AWKWARD + ending, chunk_bytes, at_word)
    lines, line = [], []
    for word in [word for chunk in chunks for word in _words(chunk)]:
        if word == LINE_END:
            lines.append(line)
            line = []
        else:
            line.append(word)
    assert not line
    assert lines == [text.split() for text in io.StringIO(AWKWARD + ending, newline=None)]


@pytest.mark.parametrize("chunk_bytes", SIZES)
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
def test_the_first_bad_byte_is_named(tmp_path, data, offset, chunk_bytes, boundary):
    for start in (0, 2):
        chunks = chunks_of(tmp_path / "bad", b"12" + data, chunk_bytes, boundary, start=start)
        with pytest.raises(ValueError, match=f"bad: not UTF-8 at byte {offset + 2} .*take bytes for symbols"):
            for chunk in chunks:
                chunk.decode(chunk.read())


def test_a_file_that_shrinks_is_noticed(tmp_path):
    chunks = chunks_of(tmp_path / "a", "0123456789", 4, at_byte)
    (tmp_path / "a").write_bytes(b"01234")
    with pytest.raises(ValueError, match="a: ended at byte 5, it had 8 before"):
        [chunk.read() for chunk in chunks]


@pytest.mark.parametrize("chunk_bytes", SIZES)
def test_line_ends_are_normalised_wherever_chunks_are_cut(tmp_path, chunk_bytes):
    chunks = chunks_of(tmp_path / "a", AWKWARD, chunk_bytes, at_char)
    texts = [Chars(line_ends="normalise").split(chunk)[0] for chunk in chunks]
    assert b"".join(texts).decode() == AWKWARD.replace("\r\n", "\n").replace("\r", "\n")
