"""What ``from_pretrained`` gives: fairseq's hub interface, which knows how the model's text becomes symbols."""

from fairseq.hub_utils import GeneratorHubInterface
from torch import Tensor


class MemoryHubInterface(GeneratorHubInterface):
    """``encode``, ``decode``, ``score``, ``sample``, ``generate`` as fairseq's own language models have them.

    Text becomes symbols as the data in the folder was made (``manifest.json`` there), unless a ``bpe`` was asked for.
    """

    def __init__(self, cfg, task, models):
        super().__init__(cfg, task, models)
        self.tokenizer = task.build_tokenizer(cfg.tokenizer)
        self.bpe = task.build_bpe(cfg.bpe)

    def binarize(self, sentence: str) -> Tensor:
        """[N + 1] int64, the symbols of a text, and ``</s>``."""
        return self.task.text_tokens(super().binarize(sentence))
