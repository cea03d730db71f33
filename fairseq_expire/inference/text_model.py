"""A model and what it makes of text."""

import functools
import hashlib
import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from fairseq_expire.inference.score import Score
from fairseq_expire.inference.stream import Stream
from fairseq_expire.inference.utf8 import Utf8Mask
from fairseq_expire.modules import LanguageModel
from fairseq_expire.tokenizers.bound import BoundTokenizer, Text
from fairseq_expire.tokenizers.dictionary import check_dictionary

# Tokens that are read at once. Nothing depends on it but speed.
BLOCK = 512


class TextModel:
    """A trained model with its dictionary: :func:`fairseq_expire.load` gives one.

    Args:
        model: the weights; in ``eval`` mode from here on.
        codec: text to tokens and back, with the dictionary that the model was trained with.
    Raises:
        ValueError: if the dictionary is another one.
    """

    def __init__(self, model: LanguageModel, codec: BoundTokenizer):
        check_dictionary(model.dictionary_digest, codec.symbols, model="the model", dictionary="this dict.txt")
        self.model = model.eval()
        self.codec = codec

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def score(self, text: Text, *, block: int = BLOCK) -> Score:
        """What a text costs, read from its beginning with ``</s>`` in front, as ``fairseq-eval-lm`` reads a split.

        Args:
            text: str, bytes, or a str of bytes that Python's ``surrogateescape`` decoded. Words without a line end behind the last one are a line that goes on: no ``</s>`` is scored there.
            block: tokens read at once.
        Raises:
            ValueError: if there is nothing to score; if the text has bytes that are not UTF-8 and a symbol is not a byte.
        """
        ids = self.codec.encode(text)
        if not ids:
            raise ValueError("there is no token in this text: nothing to score")
        inputs, memory, log_probs = [self.codec.eos, *ids[:-1]], None, []
        with torch.no_grad():
            for start in range(0, len(ids), check_block(block)):
                out = self.model.read(self.tokens(inputs[start : start + block]), memory)
                memory = out.memory
                scores = self.model.target_log_probs(out.hidden, self.tokens(ids[start : start + block]))
                # In this order: MPS has no float64.
                log_probs.append(scores[0].cpu().double().numpy())
        return Score(self.codec, np.array(ids), np.concatenate(log_probs) / -math.log(2))

    def generate(
        self,
        prompt: Text = "",
        *,
        max_tokens: int | None = 256,
        greedy: bool = False,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        utf8: bool = False,
        stop_at_eos: bool = False,
        errors: str = "replace",
        block: int = BLOCK,
    ) -> Iterator[str]:
        """Text that goes on from a prompt of any length, a piece at a time: see :meth:`Stream.generate`."""
        stream = self.stream(block=block)
        stream.feed(prompt)
        return stream.generate(
            max_tokens=max_tokens,
            greedy=greedy,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            utf8=utf8,
            stop_at_eos=stop_at_eos,
            errors=errors,
        )

    def stream(self, state: Mapping[str, Tensor] | None = None, *, block: int = BLOCK) -> Stream:
        """A text that is read as it arrives, from its beginning or from a state that :meth:`Stream.state_dict` gave."""
        stream = Stream(self, block=check_block(block))
        if state is not None:
            stream.load_state_dict(state)
        return stream

    def tokens(self, ids: list[int]) -> Tensor:
        """[1, T] int64 on the model's device."""
        return torch.tensor([ids], device=self.device)

    @functools.cached_property
    def utf8_mask(self) -> Utf8Mask:
        """Raises ValueError unless a symbol is a byte."""
        if self.codec.level != "bytes":
            raise ValueError(f"utf8 is for models of bytes; the symbols of this one are {self.codec.level}")
        return Utf8Mask(self.codec.symbols)

    @functools.cached_property
    def fingerprint(self) -> Tensor:
        """[4] int64, the first half of the SHA-256 of all weights, the dictionary, and the limit that spans are cut to."""
        limits = [layer.policy.span_limit for layer in self.model.stack.layers]
        digest = hashlib.sha256(f"{self.model.dictionary_digest} {limits}".encode())
        for name, weight in self.model.state_dict().items():
            digest.update(name.encode())
            digest.update(weight.detach().cpu().flatten().contiguous().view(torch.uint8).numpy())
        return torch.from_numpy(np.frombuffer(digest.digest()[:16], dtype=">u4").astype(np.int64))


def check_block(block: int) -> int:
    """The number itself. Raises ValueError if nothing can be read so many tokens at a time."""
    if block < 1:
        raise ValueError(f"block is how many tokens are read at once: expected at least 1, got {block}")
    return block
