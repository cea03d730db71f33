"""The hub interface that ``from_pretrained`` returns, with the tokenizer of the model's data."""

from fairseq.hub_utils import GeneratorHubInterface
from torch import Tensor

from fairseq_expire.tokenizers.bound import Text, as_bytes


class MemoryHubInterface(GeneratorHubInterface):
    """``encode``, ``decode``, ``score``, ``sample`` and ``generate``, as fairseq's own language models have them.

    Text is a str or bytes. It becomes symbols as in the data of the model (``manifest.json`` in its folder), unless
    ``bpe`` names another way.
    """

    def __init__(self, cfg, task, models):
        if task.label_dictionary is not None:
            raise ValueError(
                "the checkpoint predicts labels (--task memory_caching_tagging), not text: expected a language model; "
                "score it with fairseq-eval-lm or fairseq-validate"
            )
        super().__init__(cfg, task, models)
        self.tokenizer = task.build_tokenizer(cfg.tokenizer)
        self.bpe = task.text_encoder(cfg.bpe)

    def score(self, sentences: Text | list[Text], *given, **options) -> dict | list[dict]:
        return super().score(_str_of(sentences), *given, **options)

    def sample(self, sentences: Text | list[Text], *given, **options) -> str | list[str]:
        return super().sample(_str_of(sentences), *given, **options)

    def encode(self, sentence: Text) -> Tensor:
        """Returns the symbols of a text, and ``</s>``: [N + 1] int64.

        Raises:
            ValueError: the text has bytes that are not UTF-8, and symbols are not bytes.
        """
        text = _str_of(sentence)
        if self.bpe is None and not text.isascii():
            # Without this check the word would be an unknown one.
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"the text given is not UTF-8 at its character {error.start}: convert it, or take a model of bytes"
                ) from None
        return super().encode(text)

    def binarize(self, sentence: str) -> Tensor:
        """Returns the named symbols, and ``</s>``: [N + 1] int64."""
        return self.task.text_tokens(super().binarize(sentence))


def _str_of(text: Text | list[Text]) -> str | list[str]:
    """Returns a str with a lone surrogate for each byte that is not UTF-8; for a list of texts, a list."""
    if isinstance(text, (list, tuple)):
        return [_str_of(each) for each in text]
    return as_bytes(text).decode("utf-8", "surrogateescape")
