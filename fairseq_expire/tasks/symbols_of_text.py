"""What ``fairseq-interactive`` and the hub interface put text through where no ``--bpe`` is given."""

from fairseq_expire.data.text_codec import TextCodec


class SymbolsOfText:
    """Text to the names of its symbols with spaces between, and back: what a BPE is to fairseq.

    Args:
        codec: of the data that the model was trained with.
    """

    def __init__(self, codec: TextCodec):
        self.codec = codec

    def encode(self, text: str) -> str:
        symbols = self.codec.symbols
        return " ".join([symbols[index] for index in self.codec.encode(text)])

    def decode(self, names: str) -> str:
        return self.codec.decode(map(self.codec.dictionary.index, names.split()))
