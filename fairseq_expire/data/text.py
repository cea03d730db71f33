"""Reading pieces of files a chunk at a time: as bytes, as text, as lines."""
import codecs
import io
from itertools import chain
from typing import Callable, Iterator

from fairseq_expire.data.sources import Piece

# Bytes read at once where nothing asks for more: little enough to stay in the processor's cache.
READ_BYTES = 1 << 20

# Called with the number of bytes just read.
OnRead = Callable[[int], None]


def read_bytes(piece: Piece, *, chunk_bytes: int, on_read: OnRead) -> Iterator[bytes]:
    """The bytes of a piece, `chunk_bytes` at a time and what is left at the end.

    Raises:
        ValueError: the file has become shorter since it was found.
    """
    with open(piece.path, "rb") as file:
        position = file.seek(piece.start)
        while position < piece.stop:
            chunk = file.read(min(chunk_bytes, piece.stop - position))
            if not chunk:
                raise ValueError(f"{piece.path}: ended at byte {position}, it had {piece.stop} before; start again")
            position += len(chunk)
            on_read(len(chunk))
            yield chunk


def read_text(piece: Piece, *, chunk_bytes: int, on_read: OnRead) -> Iterator[str]:
    """The text of a piece, as many characters at a time as `chunk_bytes` bytes complete, never none.

    Nothing is translated or skipped: line ends stay as they are, and a byte order mark is a character.

    Raises:
        ValueError: the piece is not UTF-8; names the file and the offset in it of the first bad byte.
    """
    # `rest` is the beginning of a character whose end the next chunk holds, `offset` its place in the file.
    rest, offset = b"", piece.start
    for chunk in chain(read_bytes(piece, chunk_bytes=chunk_bytes, on_read=on_read), [b""]):
        content = rest + chunk
        try:
            text, used = codecs.utf_8_decode(content, "strict", not chunk)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{piece.path}: not UTF-8 at byte {offset + error.start} ({error.reason}); "
                "convert it, leave it out or use --level bytes"
            ) from None
        rest, offset = content[used:], offset + used
        if text:
            yield text


def read_lines(piece: Piece, *, chunk_bytes: int, on_read: OnRead) -> Iterator[str]:
    r"""The lines of a piece without their ends, as Python's text mode finds them: "\n", "\r\n" and "\r" end a line.

    Text after the last line end is a line too. Nothing else ends a line, neither U+0085 nor U+2028.

    Raises:
        ValueError: as `read_text`.
    """
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    # Kept apart until the line is complete: joining them at every chunk would make long lines quadratic.
    unfinished = []
    for text in read_text(piece, chunk_bytes=chunk_bytes, on_read=on_read):
        first, *others = newlines.decode(text).split("\n")
        unfinished.append(first)
        if others:
            yield "".join(unfinished)
            unfinished = [others.pop()]
            yield from others
    # A "\r" at the very end was held back in case a "\n" would follow.
    unfinished.append(newlines.decode("", final=True))
    last = "".join(unfinished)
    if last:
        yield last.removesuffix("\n")
