"""What ``fairseq-interactive`` and the hub interface put text through where no ``--bpe`` is given."""

from fairseq_expire.tokenizers.bound import BoundTokenizer, Text


class SymbolsOfText:
    """Text to the names of its symbols with spaces between, and back: what a BPE is to fairseq.

    Args:
        codec: of the data that the model was trained with.
    """

    def __init__(self, codec: BoundTokenizer):
        self.codec = codec

    def encode(self, text: Text) -> str:
        """Raises ValueError if the text has bytes that are not UTF-8 and a symbol is not a byte."""
        symbols = self.codec.symbols
        return " ".join([symbols[index] for index in self.codec.encode(text)])

    def decode(self, names: str) -> str:
        """Bytes that are not UTF-8 become U+FFFD; the names say which they are."""
        return self.codec.decode(map(self.codec.dictionary.index, names.split()))
