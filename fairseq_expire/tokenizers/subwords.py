"""Subwords: the pieces of a SentencePiece model that is learned from a sample of the train split."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import sentencepiece

from fairseq_expire.files import write_atomically
from fairseq_expire.tokenizers.bytes_and_chars import char_symbol
from fairseq_expire.tokenizers.chunks import CHUNK_BYTES, Chunk, at_line, split_into_chunks
from fairseq_expire.tokenizers.dictionary import SPECIAL_SYMBOLS, SymbolTable
from fairseq_expire.tokenizers.tokenizer import (
    LINE_ENDS,
    Decoder,
    EncodedChunk,
    Encoder,
    Tokenizer,
    check_choice,
    is_filler,
    item_ends,
    normalise_line_ends,
    own_symbols,
    whole_chars,
)

MODEL_FILE = "spm.model"
# SentencePiece's sign for a space. A U+2581 of the text itself becomes byte pieces.
SPACE_MARK = "\u2581"
# The SentencePiece name of a byte's piece.
BYTE_PIECE = "<0x{:02X}>".format
# The text of a piece that the dictionary lacks.
PLACEHOLDER = "\ufffd".encode()
# A text to test a model with. Most models that do not keep all text change this one.
PROBE = "  a  \uff21\ufb01\u0130 e\u0301\u00e9\u200b\u00a0\ufeff\t\r\n\n b\0 "
# Enough for vocabularies of tens of thousands. Learning takes about 20 bytes of memory for each of these.
SAMPLE_BYTES = 8 << 20
# The least to sample of a longer chunk, so that not every file of a large corpus is opened.
MIN_SAMPLE_BYTES = 1 << 16
# The longest line to learn from.
LINE_CHARS = 1 << 14
# With another number of threads SentencePiece sums in another order, and learns another model.
LEARNING_THREADS = 4


@dataclass
class Subwords(Tokenizer):
    r"""A symbol is a piece of a SentencePiece model (unigram).

    Nothing is normalised, and "\n" is a piece of its own. Characters that the sample lacks, and U+2581, become byte
    pieces. So no text is unknown, unless the dictionary lacks pieces, as those of fairseq-preprocess may.

    Args:
        vocab_size: number of pieces of the model.
        line_ends: "normalise" replaces "\r\n" and "\r" by "\n"; "keep" keeps them.

    Raises:
        ValueError: ``line_ends`` is none of these.
    """

    vocab_size: int = 32000
    line_ends: str = "keep"

    name = "subword"
    boundary = staticmethod(at_line)

    def __post_init__(self):
        check_choice("line_ends", self.line_ends, LINE_ENDS)
        self._processor = sentencepiece.SentencePieceProcessor()
        self._names: list[str] = []
        # The text of each piece.
        self._contents: list[bytes] = []
        # The concatenated texts, uint8, and the offset and the length of each, int32 [vocab_size].
        self._joined = self._starts = self._lengths = np.zeros(0, dtype=np.int32)
        # The byte pieces of SPACE_MARK.
        self._mark_pieces: list[int] = []
        # True if a text can be cut there without changing its pieces: after a line end, before a space.
        self._cut_at_lines = self._cut_at_spaces = True

    def learn(self, chunks: Sequence[Chunk], folder: Path) -> None:
        model = BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=self._lines(self.sample(chunks)),
                model_writer=model,
                vocab_size=self.vocab_size,
                model_type="unigram",
                normalization_rule_name="identity",
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                byte_fallback=True,
                character_coverage=1.0,
                user_defined_symbols=["\n"],
                max_sentence_length=4 * LINE_CHARS,
                unk_id=0,
                bos_id=-1,
                eos_id=-1,
                pad_id=-1,
                num_threads=LEARNING_THREADS,
                minloglevel=3,
            )
        except RuntimeError as error:
            raise ValueError(
                f"--vocab-size {self.vocab_size}: SentencePiece cannot make such a model of this text "
                f"({str(error).splitlines()[0].rpartition('] ')[2].rstrip('.')}); ask for another number of pieces, "
                "or give more text"
            ) from None
        write_atomically(folder / MODEL_FILE, model.getvalue())

    def adopt(self, source: Path, folder: Path) -> None:
        if not (source / MODEL_FILE).is_file():
            raise ValueError(
                f"{source}: no {MODEL_FILE} beside its dictionary; give the dict.txt of data made with subwords"
            )
        write_atomically(folder / MODEL_FILE, (source / MODEL_FILE).read_bytes())

    def load(self, folder: Path) -> None:
        path = folder / MODEL_FILE
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"{path}: cannot be read as a SentencePiece model ({error}); make the data again"
            ) from None
        self.vocab_size = len(self._processor)
        pieces = [self._processor.id_to_piece(index) for index in range(len(self._processor))]
        self._names = _distinct_names(pieces)
        self._contents = [self._content(index) for index in range(len(self._processor))]
        self._joined = np.frombuffer(b"".join(self._contents), dtype=np.uint8)
        self._lengths = np.array([len(content) for content in self._contents], dtype=np.int32)
        self._starts = np.cumsum(self._lengths, dtype=np.int32) - self._lengths
        byte_pieces = [self._processor.piece_to_id(BYTE_PIECE(byte)) for byte in range(256)]
        if not all(map(self._processor.is_byte, byte_pieces)):
            raise ValueError(
                f"{path}: has no pieces for bytes, so that some text would be lost; give a model that "
                "data_prep/text.py learned, or one trained with byte_fallback"
            )
        self._mark_pieces = [byte_pieces[byte] for byte in SPACE_MARK.encode()]
        self._cut_at_lines = not any("\n" in piece and piece != "\n" for piece in pieces)
        self._cut_at_spaces = not any(SPACE_MARK in piece[1:] or " " in piece for piece in pieces)
        try:
            self._encode(PROBE)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def sample(self, chunks: Sequence[Chunk]) -> Sequence[Chunk]:
        """Selects all chunks if they hold at most ``SAMPLE_BYTES``.

        Otherwise it selects about as much of their beginnings, spread evenly over the text.
        """
        total = sum(chunk.num_bytes for chunk in chunks)
        if total <= SAMPLE_BYTES:
            return chunks
        sampled, seen, taken = [], 0, 0
        for chunk in chunks:
            seen += chunk.num_bytes
            due = SAMPLE_BYTES * seen // total - taken
            if due >= min(MIN_SAMPLE_BYTES, chunk.num_bytes):
                sampled.append(next(split_into_chunks([chunk], chunk_bytes=due, boundary=at_line)))
                taken += sampled[-1].num_bytes
        return sampled

    def count(self, chunk: Chunk) -> Mapping[str, int]:
        frequencies = np.bincount(self._encode(self._read(chunk)))
        return {self._names[index]: int(frequencies[index]) for index in np.flatnonzero(frequencies).tolist()}

    def fixed_symbols(self) -> Iterable[str]:
        # The first piece is SentencePiece's own <unk>, which never occurs.
        return self._names[1:]

    def check(self, dictionary: SymbolTable) -> None:
        absent = [name for name in self._names[1:] if name not in dictionary.indices]
        symbols = [symbol for symbol in own_symbols(dictionary) if not is_filler(symbol)]
        others = set(symbols).difference(self._names)
        # fairseq-preprocess leaves out pieces that do not occur. The dictionary of another model has many others.
        if absent and 10 * len(others) > len(symbols):
            raise ValueError(
                f"it lacks {len(absent)} pieces of {MODEL_FILE}, such as {absent[0]!r}, "
                f"and has {len(others)} other symbols"
            )

    def make_encoder(self, dictionary: SymbolTable, *, dtype: type, append_eos: bool, item_per_file: bool) -> Encoder:
        own = own_symbols(dictionary)
        table: np.ndarray = np.array([own.get(name, dictionary.unk()) for name in self._names], dtype=dtype)
        known = table != dictionary.unk()

        def encode(chunk: Chunk) -> EncodedChunk:
            text = self._read(chunk)
            pieces = self._encode(text)
            ids, content = table[pieces], text.encode("utf-8")
            num_unknown = len(pieces) - int(np.count_nonzero(known[pieces]))
            if num_unknown:
                content = b"".join(
                    [self._contents[piece] if known[piece] else PLACEHOLDER for piece in pieces.tolist()]
                )
            if append_eos and chunk.ends_file:
                ids = np.append(ids, dtype(dictionary.eos()))
            return EncodedChunk(ids, item_ends(len(ids), chunk, item_per_file), num_unknown, content)

        return encode

    def make_decoder(self, dictionary: SymbolTable) -> Decoder:
        # Bytes, not str: the byte pieces of a character may be divided between two calls.
        contents = [b""] * len(dictionary)
        own = own_symbols(dictionary)
        for name, content in zip(self._names, self._contents):
            if name in own:
                contents[own[name]] = content
        contents[dictionary.unk()] = PLACEHOLDER

        def decode(ids: np.ndarray, item_ends: np.ndarray) -> bytes:
            return b"".join([contents[index] for index in ids.tolist()])

        return decode

    def stable_length(self, text: bytes) -> int:
        mark = text.rfind(SPACE_MARK.encode())
        stable = mark + len(SPACE_MARK.encode()) if mark >= 0 else 0
        if self._cut_at_lines:
            stable = max(stable, text.rfind(b"\n") + 1)
        if self._cut_at_spaces:
            stable = max(stable, text.rfind(b" "))
        # A line that is longer than a chunk is cut between characters, as `at_line` cuts it.
        return stable if len(text) - stable < CHUNK_BYTES else whole_chars(text)

    def _encode(self, text: str) -> np.ndarray:
        """The pieces of a text, int64 [length].

        Raises:
            ValueError: they do not decode to exactly this text.
        """
        first, *others = text.split(SPACE_MARK)
        numbers = self._processor.encode(first)
        for part in others:
            numbers += self._mark_pieces
            numbers += self._processor.encode(part)
        pieces = np.array(numbers, dtype=np.int64)
        if not np.array_equal(self._text_of(pieces), np.frombuffer(text.encode("utf-8"), dtype=np.uint8)):
            raise ValueError(
                f"{MODEL_FILE} does not keep a text as it is (it normalises characters or white space); give a model "
                "that data_prep/text.py learned, or one trained with normalization_rule_name=identity, "
                "add_dummy_prefix=False and remove_extra_whitespaces=False"
            )
        return pieces

    def _text_of(self, pieces: np.ndarray) -> np.ndarray:
        """The text of pieces, uint8 [length], without a loop over them."""
        lengths = self._lengths[pieces]
        starts = np.cumsum(lengths, dtype=np.int32) - lengths
        # For each byte of the text, its offset in the concatenated texts of all pieces.
        offsets = np.repeat(self._starts[pieces] - starts, lengths)
        offsets += np.arange(len(offsets), dtype=np.int32)
        return self._joined[offsets]

    def _content(self, piece: int) -> bytes:
        """The text of a piece."""
        text = self._processor.id_to_piece(piece)
        return (
            bytes([int(text[3:-1], 16)]) if self._processor.is_byte(piece) else text.replace(SPACE_MARK, " ").encode()
        )

    def _read(self, chunk: Chunk) -> str:
        """The text of a chunk after the option is applied."""
        text = chunk.decode(chunk.read())
        return normalise_line_ends(text) if self.line_ends == "normalise" else text

    def _lines(self, chunks: Sequence[Chunk]) -> Iterator[str]:
        """Yields lines to learn from, cut at space marks, too."""
        for chunk in chunks:
            for line in re.split(f"[\n{SPACE_MARK}]", self._read(chunk)):
                # SentencePiece skips lines that are longer.
                yield from (line[start : start + LINE_CHARS] for start in range(0, len(line), LINE_CHARS))


def _distinct_names(pieces: Sequence[str]) -> list[str]:
    """Names each piece for the dictionary.

    No name holds white space, is used twice, or is one of fairseq's special symbols.
    """
    taken = set(SPECIAL_SYMBOLS)
    names = []
    for piece in pieces:
        name = "".join(char_symbol(ord(char)) for char in piece.replace(SPACE_MARK, " "))
        # Different pieces may have the same names of characters.
        while name in taken:
            name += "'"
        taken.add(name)
        names.append(name)
    return names
