import io

import pytest

from fairseq_expire.data.sources import Piece
from fairseq_expire.data.text import read_bytes, read_lines, read_text

AWKWARD = "a\r\nb\r\rc\n\r\n\0\x85\x1c d\u2028e\u2029f\ufeff\u2581\xa0\U0001f600e\u0301\U0010ffff\x0b\x0c\r"
CHUNKS = [1, 2, 3, 4, 5, 7, 1000]


def whole(path):
    return Piece(path, 0, path.stat().st_size)


def ignore(num_bytes):
    pass


@pytest.mark.parametrize("chunk_bytes", CHUNKS)
def test_chunks_join_to_the_piece(tmp_path, chunk_bytes):
    path = tmp_path / "a"
    path.write_bytes(AWKWARD.encode())
    read = []
    assert "".join(read_text(whole(path), chunk_bytes=chunk_bytes, on_read=read.append)) == AWKWARD
    assert sum(read) == len(AWKWARD.encode()) and max(read) <= chunk_bytes
    chunks = list(read_bytes(Piece(path, 3, 11), chunk_bytes=chunk_bytes, on_read=ignore))
    assert b"".join(chunks) == AWKWARD.encode()[3:11]
    assert {len(chunk) for chunk in chunks[:-1]} <= {chunk_bytes}


@pytest.mark.parametrize("chunk_bytes", CHUNKS)
@pytest.mark.parametrize("ending", ["", "x", "\n", "\r", "\r\n", "\n\n", "\r\r", " "], ids=repr)
def test_lines_are_those_of_text_mode(tmp_path, ending, chunk_bytes):
    path = tmp_path / "a"
    path.write_bytes((AWKWARD + ending).encode())
    expected = [line.removesuffix("\n") for line in io.StringIO(AWKWARD + ending, newline=None)]
    with open(path, encoding="utf-8") as file:
        assert [line.removesuffix("\n") for line in file] == expected
    assert list(read_lines(whole(path), chunk_bytes=chunk_bytes, on_read=ignore)) == expected


@pytest.mark.parametrize("chunk_bytes", CHUNKS)
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
    ],
)
def test_the_first_bad_byte_is_named(tmp_path, data, offset, chunk_bytes):
    path = tmp_path / "bad"
    path.write_bytes(b"12" + data)
    for piece in (whole(path), Piece(path, 2, 2 + len(data))):
        with pytest.raises(ValueError, match=f"bad: not UTF-8 at byte {offset + 2} .*--level bytes"):
            list(read_text(piece, chunk_bytes=chunk_bytes, on_read=ignore))
        with pytest.raises(ValueError, match=f"bad: not UTF-8 at byte {offset + 2} "):
            list(read_lines(piece, chunk_bytes=chunk_bytes, on_read=ignore))


def test_a_file_that_shrinks_is_noticed(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"0123456789")
    piece = whole(path)
    path.write_bytes(b"01234")
    with pytest.raises(ValueError, match="a: ended at byte 5, it had 10 before"):
        list(read_bytes(piece, chunk_bytes=4, on_read=ignore))
