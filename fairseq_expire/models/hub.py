"""What ``from_pretrained`` gives: fairseq's hub interface, which knows how the model's text becomes symbols."""

from typing import Dict, List, Union

from fairseq.hub_utils import GeneratorHubInterface
from torch import Tensor

from fairseq_expire.data.text_codec import Text, as_bytes


class MemoryHubInterface(GeneratorHubInterface):
    """``encode``, ``decode``, ``score``, ``sample``, ``generate`` as fairseq's own language models have them.

    Text becomes symbols as the data in the folder was made (``manifest.json`` there), unless a ``bpe`` was asked for. It is a str
    or bytes.
    """

    def __init__(self, cfg, task, models):
        super().__init__(cfg, task, models)
        self.tokenizer = task.build_tokenizer(cfg.tokenizer)
        self.bpe = task.symbols_of_text(cfg.bpe)

    def score(self, sentences: Union[Text, List[Text]], *given, **options) -> Union[Dict, List[Dict]]:
        return super().score(_str_of(sentences), *given, **options)

    def sample(self, sentences: Union[Text, List[Text]], *given, **options) -> Union[str, List[str]]:
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
                raise ValueError(f"the text given is not UTF-8 at its character {error.start}: convert it, or take a model of bytes") from None
        return super().encode(text)

    def binarize(self, sentence: str) -> Tensor:
        """[N + 1] int64, the symbols that are named, and ``</s>``."""
        return self.task.text_tokens(super().binarize(sentence))


def _str_of(text: Union[Text, List[Text]]) -> Union[str, List[str]]:
    """Bytes that are not UTF-8 as lone surrogates; a list as one of such texts."""
    if isinstance(text, (list, tuple)):
        return [_str_of(each) for each in text]
    return as_bytes(text).decode("utf-8", "surrogateescape")
