"""Subwords of a SentencePiece model that is learnt from a sample of train."""
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Callable, Iterable, Iterator, List, Mapping, Optional, Sequence

import numpy as np
import sentencepiece

from fairseq_expire.data.dictionary import SPECIAL_SYMBOLS, SymbolTable
from fairseq_expire.data.files import write_atomically
from fairseq_expire.data.level import (
    LINE_ENDS,
    Decoder,
    Encoded,
    Level,
    check_choice,
    item_ends,
    normalise_line_ends,
    whole_chars,
)
from fairseq_expire.data.sources import Piece
from fairseq_expire.data.symbols import name_of_text
from fairseq_expire.data.units import UNIT_BYTES, Unit, at_line, split_into_units

MODEL_FILE = "spm.model"
# SentencePiece's sign for a space. In text it becomes one.
SPACE_MARK = "\u2581"
# Learning takes about 20 bytes of memory for each of these; enough for vocabularies of tens of thousands.
SAMPLE_BYTES = 8 << 20
# As much as is taken of a text at once, so that not every file of a large one is opened.
SLICE_BYTES = 1 << 16
LINE_CHARS = 1 << 14
# With another number of threads SentencePiece adds up in another order, and learns another model.
LEARNING_THREADS = 4


@dataclass
class Subwords(Level):
    r"""A symbol is a piece of a SentencePiece model (unigram). Nothing is normalised, "\n" is a piece of its own, and
    characters that the sample did not have are written byte by byte, so that no text is unknown.

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
        self._processor: Optional[sentencepiece.SentencePieceProcessor] = None
        self._names: List[str] = []

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
            raise ValueError(f"{source}: no {MODEL_FILE} beside its dictionary; give the dict.txt of data made with subwords")
        write_atomically(folder / MODEL_FILE, (source / MODEL_FILE).read_bytes())

    def load(self, folder: Path) -> None:
        path = folder / MODEL_FILE
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise ValueError(f"{path}: cannot be read as a SentencePiece model ({error}); make the data again") from None
        self.vocab_size = len(self._processor)
        self._names = _names([self._processor.id_to_piece(index) for index in range(len(self._processor))])

    def counted(self, units: Sequence[Unit]) -> Sequence[Unit]:
        return sample(units)

    def count(self, unit: Unit) -> Mapping[str, int]:
        frequencies = np.bincount(self._processor.encode(self._read(unit)), minlength=1)
        return {self._names[index]: int(frequencies[index]) for index in np.flatnonzero(frequencies).tolist()}

    def more_symbols(self) -> Iterable[str]:
        # The first piece is SentencePiece's own sign for what is unknown, which nothing is.
        return self._names[1:]

    def check(self, dictionary: SymbolTable) -> None:
        absent = [name for name in self._names[1:] if name not in dictionary.indices]
        if absent:
            raise ValueError(f"it lacks {len(absent)} pieces of {MODEL_FILE}, {absent[0]!r} for one")

    def encoder(
        self, dictionary: SymbolTable, *, dtype: type, append_eos: bool, item_per_file: bool
    ) -> Callable[[Unit], Encoded]:
        table = np.array([dictionary.unk(), *map(dictionary.index, self._names[1:])], dtype=dtype)

        def encode(unit: Unit) -> Encoded:
            text = self._read(unit)
            ids = table[np.array(self._processor.encode(text), dtype=np.int64)]
            if append_eos and unit.ends_file:
                ids = np.append(ids, dtype(dictionary.eos()))
            return Encoded(ids=ids, ends=item_ends(len(ids), unit, item_per_file), unknown=0, text=text.encode("utf-8"))

        return encode

    def decoder(self, dictionary: SymbolTable) -> Decoder:
        # Bytes by id: a character that is written byte by byte may lie across two runs of ids.
        contents = [b""] * len(dictionary)
        for piece, name in enumerate(self._names[1:], start=1):
            contents[dictionary.index(name)] = self._content(piece)

        def decode(ids: np.ndarray, ends: np.ndarray) -> bytes:
            return b"".join([contents[index] for index in ids.tolist()])

        return decode

    def settled(self, text: bytes) -> int:
        # A space begins a piece and stands nowhere else in one; a line that is longer is cut as `at_line` cuts it.
        settled = max(text.rfind(b"\n") + 1, text.rfind(b" "), 0)
        return settled if len(text) - settled < UNIT_BYTES else whole_chars(text)

    def _content(self, piece: int) -> bytes:
        text = self._processor.id_to_piece(piece)
        return bytes([int(text[3:-1], 16)]) if self._processor.is_byte(piece) else text.replace(SPACE_MARK, " ").encode()

    def _read(self, unit: Unit) -> str:
        text = unit.decode(unit.read()).replace(SPACE_MARK, " ")
        return normalise_line_ends(text) if self.line_ends == "normalise" else text

    def _lines(self, units: Sequence[Unit]) -> Iterator[str]:
        for unit in units:
            for line in self._read(unit).split("\n"):
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
            piece = Piece(unit.path, unit.start, unit.stop)
            chosen.append(next(split_into_units([piece], unit_bytes=due, boundary=at_line)))
            taken += chosen[-1].num_bytes
    return chosen


def _names(pieces: Sequence[str]) -> List[str]:
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
