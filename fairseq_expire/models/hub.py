"""What ``from_pretrained`` gives: fairseq's hub interface, which knows how the model's text becomes symbols."""

from fairseq.hub_utils import GeneratorHubInterface
from torch import Tensor

from fairseq_expire.tokenizers.bound import Text, as_bytes


class MemoryHubInterface(GeneratorHubInterface):
    """``encode``, ``decode``, ``score``, ``sample``, ``generate`` as fairseq's own language models have them.

    Text becomes symbols as the data in the folder was made (``manifest.json`` there), unless a ``bpe`` was asked for. It is a str
    or bytes.
    """

    def __init__(self, cfg, task, models):
        super().__init__(cfg, task, models)
        self.tokenizer = task.build_tokenizer(cfg.tokenizer)
        self.bpe = task.symbols_of_text(cfg.bpe)

    def score(self, sentences: Text | list[Text], *given, **options) -> dict | list[dict]:
        return super().score(_str_of(sentences), *given, **options)

    def sample(self, sentences: Text | list[Text], *given, **options) -> str | list[str]:
        return super().sample(_str_of(sentences), *given, **options)

    def encode(self, sentence: Text) -> Tensor:
        """[N + 1] int64, the symbols of a text, and ``</s>``. Raises ValueError if the text has bytes that are not UTF-8 and a
        symbol is not a byte."""
        text = _str_of(sentence)
        if self.bpe is None and not text.isascii():
            # Words are looked up as they are, and this one would only be unknown.
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"the text given is not UTF-8 at its character {error.start}: convert it, or take a model of bytes"
                ) from None
        return super().encode(text)

    def binarize(self, sentence: str) -> Tensor:
        """[N + 1] int64, the symbols that are named, and ``</s>``."""
        return self.task.text_tokens(super().binarize(sentence))


def _str_of(text: Text | list[Text]) -> str | list[str]:
    """Bytes that are not UTF-8 as lone surrogates; a list as one of such texts."""
    if isinstance(text, (list, tuple)):
        return [_str_of(each) for each in text]
    return as_bytes(text).decode("utf-8", "surrogateescape")
