"""A trained model together with the tokenizer of its data."""

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

# Tokens that are read at once by default; the value changes the speed only.
BLOCK = 512


class TextModel:
    """A trained model that reads and writes text; :func:`fairseq_expire.load` returns one.

    Args:
        model: the model; it is set to ``eval`` mode.
        tokenizer: converts text to tokens and back, with the dictionary that the model was trained with.
    Raises:
        ValueError: if the dictionary is another one.
    """

    def __init__(self, model: LanguageModel, tokenizer: BoundTokenizer):
        check_dictionary(model.dictionary_digest, tokenizer.symbols, model="the model", dictionary="this dict.txt")
        self.model = model.eval()
        self.tokenizer = tokenizer

    @property
    def device(self) -> torch.device:
        """The device that the model runs on."""
        return next(self.model.parameters()).device

    def score(self, text: Text, *, block: int = BLOCK) -> Score:
        r"""Scores a text from its beginning, after a ``</s>``, as ``fairseq-eval-lm`` scores a split.

        Args:
            text: str or bytes. A str may hold bytes that Python's ``surrogateescape`` decoded. With a model of words, a
                last line without "\n" is not scored as ended: it gets no ``</s>``.
            block: number of tokens that are read at once; it changes speed and memory only.
        Returns:
            the cost of each token.
        Raises:
            ValueError: if the text has no token; if it has bytes that are not UTF-8 and the model is not one of bytes.
        """
        ids = self.tokenizer.encode(text)
        if not ids:
            raise ValueError("there is no token in this text: nothing to score")
        inputs, memory, log_probs = [self.tokenizer.eos, *ids[:-1]], None, []
        with torch.no_grad():
            for start in range(0, len(ids), check_block(block)):
                out = self.model.read(self.tokens(inputs[start : start + block]), memory)
                memory = out.memory
                scores = self.model.target_log_probs(out.hidden, self.tokens(ids[start : start + block]))
                # To the CPU first: MPS has no float64.
                log_probs.append(scores[0].cpu().double().numpy())
        return Score(self.tokenizer, np.array(ids), np.concatenate(log_probs) / -math.log(2))

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
        """Continues a prompt of any length; ``"".join(model.generate(prompt))`` is the whole continuation.

        Args:
            prompt: str or bytes; an empty one starts a text.
            max_tokens, greedy, temperature, top_k, top_p, seed, utf8, stop_at_eos, errors: see :meth:`Stream.generate`.
            block: number of tokens of the prompt that are read at once; it changes speed and memory only.
        Returns:
            an iterator over pieces of text, each available as soon as its last token is generated.
        Raises:
            ValueError: see :meth:`Stream.feed` and :meth:`Stream.generate`.
        """
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
        """Starts a stream: a text that is read as it arrives.

        Args:
            state: a state to continue from, of :meth:`Stream.state_dict`; None for a new text.
            block: number of tokens that are read at once; it changes speed and memory only.
        Raises:
            ValueError: if the state is of another model, or is none.
        """
        stream = Stream(self, block=check_block(block))
        if state is not None:
            stream.load_state_dict(state)
        return stream

    def tokens(self, ids: list[int]) -> Tensor:
        """Returns token ids as a batch of one row, [1, T] int64, on the model's device."""
        return torch.tensor([ids], device=self.device)

    @functools.cached_property
    def utf8_mask(self) -> Utf8Mask:
        """The mask of tokens that keep a text valid UTF-8. Raises ValueError if the model is not one of bytes."""
        if self.tokenizer.level != "bytes":
            raise ValueError(f"utf8 is for models of bytes; the symbols of this one are {self.tokenizer.level}")
        return Utf8Mask(self.tokenizer.symbols)

    @functools.cached_property
    def fingerprint(self) -> Tensor:
        """[4] int64, the first half of the SHA-256 of all weights, the dictionary, and how memory is limited."""
        policies = [layer.policy for layer in self.model.stack.layers]
        reads_with = [self.model.dictionary_digest, [policy.span_limit for policy in policies]]
        if self.model.config.document_start is not None:
            reads_with.append(self.model.config.document_start)
        if any(policy.memory_budget is not None for policy in policies):
            reads_with.append([f"budget {policy.memory_budget}" for policy in policies])
        digest = hashlib.sha256(" ".join(map(str, reads_with)).encode())
        for name, weight in self.model.state_dict().items():
            digest.update(name.encode())
            digest.update(weight.detach().cpu().flatten().contiguous().view(torch.uint8).numpy())
        return torch.from_numpy(np.frombuffer(digest.digest()[:16], dtype=">u4").astype(np.int64))


def check_block(block: int) -> int:
    """Returns the number of tokens to read at once. Raises ValueError if it is below 1."""
    if block < 1:
        raise ValueError(f"block is how many tokens are read at once: expected at least 1, got {block}")
    return block
