"""Subwords of a SentencePiece model that is learnt from a sample of train."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import sentencepiece

from fairseq_expire.corpora.sources import FileSlice
from fairseq_expire.files import write_atomically
from fairseq_expire.tokenizers.base import (
    LINE_ENDS,
    Decoder,
    Encoded,
    Tokenizer,
    check_choice,
    is_extra,
    item_ends,
    normalise_line_ends,
    own_symbols,
    whole_chars,
)
from fairseq_expire.tokenizers.dictionary import SPECIAL_SYMBOLS, SymbolTable
from fairseq_expire.tokenizers.symbols import name_of_text
from fairseq_expire.tokenizers.units import UNIT_BYTES, Unit, at_line, split_into_units

MODEL_FILE = "spm.model"
# SentencePiece's sign for a space. Where it is in the text itself, it is written byte by byte.
SPACE_MARK = "\u2581"
# The name of a byte's piece.
BYTE_PIECE = "<0x{:02X}>".format
# What stands for a piece that the dictionary lacks.
PLACEHOLDER = "\ufffd".encode()
# What most models that do not keep a text would change.
PROBE = "  a  \uff21\ufb01\u0130 e\u0301\u00e9\u200b\u00a0\ufeff\t\r\n\n b\0 "
# Learning takes about 20 bytes of memory for each of these; enough for vocabularies of tens of thousands.
SAMPLE_BYTES = 8 << 20
# As much as is taken of a text at once, so that not every file of a large one is opened.
SLICE_BYTES = 1 << 16
LINE_CHARS = 1 << 14
# With another number of threads SentencePiece adds up in another order, and learns another model.
LEARNING_THREADS = 4


@dataclass
class Subwords(Tokenizer):
    r"""A symbol is a piece of a SentencePiece model (unigram). Nothing is normalised, "\n" is a piece of its own, and
    characters that the sample did not have are written byte by byte, and so is U+2581, so that no text is unknown. Only
    with a dictionary that lacks pieces, such as fairseq-preprocess makes, these are.

    Args:
        vocab_size: how many pieces the model has.
        line_ends: whether "\r\n" and "\r" become "\n" ("normalise") or stay ("keep").
    Raises:
        ValueError: if an option is none of these.
    """

    vocab_size: int = 32000
    line_ends: str = "keep"

    boundary = staticmethod(at_line)

    def __post_init__(self):
        check_choice("line_ends", self.line_ends, LINE_ENDS)
        self._processor: sentencepiece.SentencePieceProcessor | None = None
        self._names: list[str] = []
        # The text of each piece; and of all, one after the other, uint8, with the place and the length of each.
        self._contents: list[bytes] = []
        self._joined = self._starts = self._lengths = np.zeros(0, dtype=np.int32)
        # The pieces that SPACE_MARK is written with.
        self._mark_pieces: list[int] = []
        # Where a text may be cut without changing its pieces: after a line end, before a space.
        self._cut_at_lines = self._cut_at_spaces = True

    def learn(self, units: Sequence[Unit], folder: Path) -> None:
        path = folder / MODEL_FILE
        if path.exists():
            return
        model = BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=self._lines(sample(units)),
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
                f"({str(error).splitlines()[0].rpartition('] ')[2].rstrip('.')}); ask for another number of pieces, or give more text"
            ) from None
        write_atomically(path, model.getvalue())

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
        self._names = _names(pieces)
        self._contents = [self._content(index) for index in range(len(self._processor))]
        self._joined = np.frombuffer(b"".join(self._contents), dtype=np.uint8)
        self._lengths = np.array([len(content) for content in self._contents], dtype=np.int32)
        self._starts = np.cumsum(self._lengths, dtype=np.int32) - self._lengths
        byte_pieces = [self._processor.piece_to_id(BYTE_PIECE(byte)) for byte in range(256)]
        if not all(map(self._processor.is_byte, byte_pieces)):
            raise ValueError(
                f"{path}: has no pieces for bytes, so that some text would be lost; give a model that data_prep/text.py learnt, "
                "or one trained with byte_fallback"
            )
        self._mark_pieces = [byte_pieces[byte] for byte in SPACE_MARK.encode()]
        self._cut_at_lines = not any("\n" in piece and piece != "\n" for piece in pieces)
        self._cut_at_spaces = not any(SPACE_MARK in piece[1:] or " " in piece for piece in pieces)
        try:
            self._encode(PROBE)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def counted(self, units: Sequence[Unit]) -> Sequence[Unit]:
        return sample(units)

    def count(self, unit: Unit) -> Mapping[str, int]:
        frequencies = np.bincount(self._encode(self._read(unit)))
        return {self._names[index]: int(frequencies[index]) for index in np.flatnonzero(frequencies).tolist()}

    def more_symbols(self) -> Iterable[str]:
        # The first piece is SentencePiece's own sign for what is unknown, which nothing is.
        return self._names[1:]

    def check(self, dictionary: SymbolTable) -> None:
        absent = [name for name in self._names[1:] if name not in dictionary.indices]
        symbols = [symbol for symbol in own_symbols(dictionary) if not is_extra(symbol)]
        others = set(symbols).difference(self._names)
        # fairseq-preprocess leaves out pieces that train has none of. Of another model some pieces would be the same.
        if absent and 10 * len(others) > len(symbols):
            raise ValueError(
                f"it lacks {len(absent)} pieces of {MODEL_FILE}, {absent[0]!r} for one, and has {len(others)} other symbols"
            )

    def encoder(
        self, dictionary: SymbolTable, *, dtype: type, append_eos: bool, item_per_file: bool
    ) -> Callable[[Unit], Encoded]:
        own = own_symbols(dictionary)
        table = np.array([own.get(name, dictionary.unk()) for name in self._names], dtype=dtype)
        known = table != dictionary.unk()

        def encode(unit: Unit) -> Encoded:
            text = self._read(unit)
            pieces = self._encode(text)
            ids, content = table[pieces], text.encode("utf-8")
            unknown = len(pieces) - int(np.count_nonzero(known[pieces]))
            if unknown:
                content = b"".join(
                    [self._contents[piece] if known[piece] else PLACEHOLDER for piece in pieces.tolist()]
                )
            if append_eos and unit.ends_file:
                ids = np.append(ids, dtype(dictionary.eos()))
            return Encoded(ids=ids, ends=item_ends(len(ids), unit, item_per_file), unknown=unknown, text=content)

        return encode

    def decoder(self, dictionary: SymbolTable) -> Decoder:
        # Bytes by id: a character that is written byte by byte may lie across two runs of ids.
        contents = [b""] * len(dictionary)
        own = own_symbols(dictionary)
        for name, content in zip(self._names, self._contents):
            if name in own:
                contents[own[name]] = content
        contents[dictionary.unk()] = PLACEHOLDER

        def decode(ids: np.ndarray, ends: np.ndarray) -> bytes:
            return b"".join([contents[index] for index in ids.tolist()])

        return decode

    def settled(self, text: bytes) -> int:
        # A line that is longer is cut as `at_line` cuts it.
        mark = text.rfind(SPACE_MARK.encode())
        settled = mark + len(SPACE_MARK.encode()) if mark >= 0 else 0
        if self._cut_at_lines:
            settled = max(settled, text.rfind(b"\n") + 1)
        if self._cut_at_spaces:
            settled = max(settled, text.rfind(b" "))
        return settled if len(text) - settled < UNIT_BYTES else whole_chars(text)

    def _encode(self, text: str) -> np.ndarray:
        """The pieces that a text is made of, exactly, int64 [length]. Raises ValueError if the model makes something else of it."""
        first, *others = text.split(SPACE_MARK)
        numbers = self._processor.encode(first)
        for part in others:
            numbers += self._mark_pieces
            numbers += self._processor.encode(part)
        pieces = np.array(numbers, dtype=np.int64)
        if not np.array_equal(self._text_of(pieces), np.frombuffer(text.encode("utf-8"), dtype=np.uint8)):
            raise ValueError(
                f"{MODEL_FILE} does not keep a text as it is (it normalises characters or white space); give a model that "
                "data_prep/text.py learnt, or one trained with normalization_rule_name=identity, add_dummy_prefix=False and "
                "remove_extra_whitespaces=False"
            )
        return pieces

    def _text_of(self, pieces: np.ndarray) -> np.ndarray:
        """The text of pieces, uint8 [length], without a step in Python for each."""
        lengths = self._lengths[pieces]
        befores = np.cumsum(lengths, dtype=np.int32) - lengths
        # For each byte, its place among those of all pieces.
        places = np.repeat(self._starts[pieces] - befores, lengths)
        places += np.arange(len(places), dtype=np.int32)
        return self._joined[places]

    def _content(self, piece: int) -> bytes:
        text = self._processor.id_to_piece(piece)
        return (
            bytes([int(text[3:-1], 16)]) if self._processor.is_byte(piece) else text.replace(SPACE_MARK, " ").encode()
        )

    def _read(self, unit: Unit) -> str:
        text = unit.decode(unit.read())
        return normalise_line_ends(text) if self.line_ends == "normalise" else text

    def _lines(self, units: Sequence[Unit]) -> Iterator[str]:
        for unit in units:
            for line in re.split(f"[\n{SPACE_MARK}]", self._read(unit)):
                # SentencePiece would leave out lines that are longer.
                yield from (line[start : start + LINE_CHARS] for start in range(0, len(line), LINE_CHARS))


def sample(units: Sequence[Unit]) -> Sequence[Unit]:
    """All units, or if they hold more than SAMPLE_BYTES about as much of their beginnings, spread evenly over the text."""
    total = sum(unit.num_bytes for unit in units)
    if total <= SAMPLE_BYTES:
        return units
    chosen, seen, taken = [], 0, 0
    for unit in units:
        seen += unit.num_bytes
        due = SAMPLE_BYTES * seen // total - taken
        if due >= min(SLICE_BYTES, unit.num_bytes):
            piece = FileSlice(unit.path, unit.start, unit.stop, source=unit.source)
            chosen.append(next(split_into_units([piece], unit_bytes=due, boundary=at_line)))
            taken += chosen[-1].num_bytes
    return chosen


def _names(pieces: Sequence[str]) -> list[str]:
    """A name for each piece in the dictionary: without white space, none twice, and none of fairseq's special ones."""
    taken = set(SPECIAL_SYMBOLS)
    names = []
    for piece in pieces:
        name = name_of_text(piece.replace(SPACE_MARK, " "))
        while name in taken:
            name += "'"
        taken.add(name)
        names.append(name)
    return names
