"""A text that is read as it arrives, and continued by the model at any point."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from fairseq_expire.files import write_atomically
from fairseq_expire.inference.sampling import Sampler
from fairseq_expire.inference.utf8 import MAX_CHAR_BYTES, Utf8Mask
from fairseq_expire.modules import Memory
from fairseq_expire.tokenizers.bound import DECODING_ERRORS, BoundTokenizer, StreamEncoder, Text

if TYPE_CHECKING:
    from fairseq_expire.inference.text_model import TextModel


class Candidate(NamedTuple):
    """A symbol that may come next, and the natural logarithm of its probability."""

    symbol: str
    log_prob: float


@dataclass(frozen=True, eq=False)
class Distribution:
    """Probabilities of the next token.

    Args:
        tokenizer: the tokenizer of the model.
        log_probs: [V], natural logarithms of the probabilities, on the CPU.
    """

    tokenizer: BoundTokenizer
    log_probs: Tensor

    def __getitem__(self, symbol: str) -> float:
        """Returns the log-probability of a symbol by its name in the dictionary. Raises KeyError if there is none."""
        return self.log_probs[self.tokenizer.dictionary.indices[symbol]].item()

    def top(self, number: int) -> list[Candidate]:
        """Returns the most likely symbols, the most likely one first."""
        best = self.log_probs.topk(min(number, len(self.log_probs)))
        symbols = self.tokenizer.symbols
        return [Candidate(symbols[index], value) for value, index in zip(best.values.tolist(), best.indices.tolist())]


class Stream:
    """A text of any length that is read as it arrives, with the memory of it; :meth:`TextModel.stream` starts one.

    Args:
        model: the model that reads.
        block: number of tokens that are read at once.
    """

    def __init__(self, model: "TextModel", *, block: int):
        self._model = model
        self._block = block
        self._encoder = model.tokenizer.stream_encoder()
        self._memory: Memory | None = None
        # [1, 1, D] of the last token.
        self._features = torch.empty(0)
        # The last tokens, of which a character that is incomplete is part.
        self._recent: list[int] = []
        self._tokens_read = 0
        self._read([model.tokenizer.eos])
        # The </s> in front is not part of the text.
        self._recent, self._tokens_read = [], 0

    @property
    def tokens_read(self) -> int:
        """Number of tokens of the text that the model has read."""
        return self._tokens_read

    def feed(self, text: Text) -> int:
        """Reads more of the text, which may be cut anywhere.

        A character, word or line end that may not be complete waits in :attr:`pending` for the rest of it.

        Args:
            text: str or bytes.
        Returns:
            the number of tokens that were read.
        Raises:
            ValueError: if the text has bytes that are not UTF-8 and the model is not one of bytes; nothing is read
                then.
        """
        return self._read(self._encoder.feed(text))

    def flush(self) -> int:
        """Reads the pending text as if the text ended there. Returns the number of tokens that were read."""
        return self._read(self._encoder.flush())

    @property
    def pending(self) -> bytes:
        """Text that was fed and waits for more, in UTF-8."""
        return self._encoder.pending

    def next_distribution(self) -> Distribution:
        """Predicts the token after all that was read."""
        return Distribution(self._model.tokenizer, self._next_log_probs().cpu())

    @property
    def memory_bytes(self) -> int:
        """Size of the memory in bytes."""
        return self._memory.nbytes

    @property
    def memory_sizes(self) -> tuple[int, ...]:
        """Number of states that each layer remembers."""
        return tuple(int(layer.occupied.sum()) for layer in self._memory.layers)

    def generate(
        self,
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
    ) -> Iterator[str]:
        """Continues the text; the continuation is read as part of it.

        Pending text is read first. Padding and ``<s>``, which no text has, are never generated.

        Args:
            max_tokens: number of tokens after which to stop; None for no limit.
            greedy: always take the most likely token.
            temperature: divides the log-probabilities; below 1 likely tokens are sampled more often.
            top_k: sample from the k most likely tokens only.
            top_p: sample from the smallest set of most likely tokens with at least this share of the probability.
            seed: seed of the random numbers; None for PyTorch's global generator.
            utf8: with a model of bytes, generate valid UTF-8 that ends after a whole character.
            stop_at_eos: stop where the model generates ``</s>``.
            errors: treatment of generated bytes that are not UTF-8, as in :meth:`bytes.decode`. With "replace" each
                becomes U+FFFD. With "surrogateescape" it becomes a lone surrogate, and
                ``"".join(pieces).encode("utf-8", "surrogateescape")`` is exactly the generated bytes. If the text so
                far ends inside a character, "replace" gives the whole character again, "surrogateescape" only its new
                bytes.
        Returns:
            an iterator over pieces of text, each available as soon as its last token is generated.
        Raises:
            ValueError: if a value is out of its range; if ``utf8`` is given and the model is not one of bytes, or the
                text ends in a character that cannot be completed.
        """
        if max_tokens is not None and max_tokens < 1:
            raise ValueError(f"max_tokens is how many tokens to write: expected at least 1 or none, got {max_tokens}")
        if errors not in DECODING_ERRORS:
            raise ValueError(f"errors is {errors!r}, expected one of {', '.join(DECODING_ERRORS)}")
        sampler = Sampler(greedy=greedy, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        mask = self._model.utf8_mask if utf8 else None
        self.flush()
        if mask is not None:
            # Raises now, rather than when the first piece is asked for.
            mask(torch.tensor([self._recent], dtype=torch.int64), max_tokens or MAX_CHAR_BYTES)
        return self._pieces(sampler, mask, max_tokens, stop_at_eos, errors)

    def _pieces(
        self, sampler: Sampler, mask: Utf8Mask | None, max_tokens: int | None, stop_at_eos: bool, errors: str
    ) -> Iterator[str]:
        tokenizer = self._model.tokenizer
        decoder = tokenizer.stream_decoder(errors)
        # The text of a token (a space before a word, the rest of a character) depends on the tokens before it.
        for index in self._recent:
            decoder.feed(index)
        if errors == "surrogateescape":
            # Drops the bytes of a character that the text so far has begun.
            decoder.flush()
        for remaining in repeat(MAX_CHAR_BYTES) if max_tokens is None else range(max_tokens, 0, -1):
            log_probs = self._next_log_probs().cpu()
            log_probs[[tokenizer.dictionary.bos(), tokenizer.pad]] = -torch.inf
            if mask is not None:
                allowed = mask(torch.tensor([self._recent], dtype=torch.int64), remaining)[0]
                log_probs.masked_fill_(~allowed, -torch.inf)
            index = sampler(log_probs)
            if stop_at_eos and index == tokenizer.eos:
                break
            self._read([index])
            piece = decoder.feed(index)
            if piece:
                yield piece
        rest = decoder.flush()
        if rest:
            yield rest

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the memory and all else that continuing the text needs, as plain tensors."""
        state = {f"memory.{name}": value for name, value in self._memory.state_dict().items()}
        state["features"] = self._features
        state["recent"] = torch.tensor(self._recent, dtype=torch.int64)
        state["tokens_read"] = torch.tensor(self._tokens_read)
        state["pending"] = torch.tensor(list(self.pending), dtype=torch.uint8)
        state["weights"] = self._model.fingerprint
        return {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continues from a state of :meth:`state_dict`.

        Raises:
            ValueError: if the state is of another model, or is none; this stream stays as it was then.
        """
        expected = {"features", "recent", "tokens_read", "pending", "weights"}
        if "held" in state:
            raise ValueError(
                "the state of this stream was written by an earlier version of fairseq_expire: read the text again"
            )
        if not expected <= set(state):
            raise ValueError(f"not the state of a stream: expected {', '.join(sorted(expected))}, got {sorted(state)}")
        if not torch.equal(state["weights"].cpu(), self._model.fingerprint):
            raise ValueError(
                "the state of a stream goes on only with the weights it was made with, their span_limit and their "
                "--break-memory-at-eos; these are others"
            )
        memory = Memory.from_state_dict(
            {name.removeprefix("memory."): value for name, value in state.items() if name not in expected}
        )
        stack = self._model.model.stack
        stack.check_memory(memory, batch=1)
        expected_shape, shape = [1, 1, stack.embed_dim], list(state["features"].shape)
        if shape != expected_shape:
            raise ValueError(f"not the state of a stream: expected features {expected_shape}, got {shape}")
        self._memory = memory.to(device=self._model.device)
        self._features = state["features"].to(self._model.device)
        self._recent = state["recent"].tolist()
        self._tokens_read = int(state["tokens_read"])
        self._encoder = StreamEncoder(self._model.tokenizer, bytes(state["pending"].tolist()))

    def save(self, path: str | Path) -> None:
        """Writes the state to a file; a kill leaves the old file or the new one."""
        write_atomically(Path(path), safetensors.torch.save(self.state_dict()))

    def restore(self, path: str | Path) -> None:
        """Continues from a file that :meth:`save` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is damaged, or of another model.
        """
        try:
            state = safetensors.torch.load(Path(path).read_bytes())
        except SafetensorError as error:
            raise ValueError(f"{path}: not the state of a stream, or damaged ({error}); start again") from None
        try:
            self.load_state_dict(state)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def _read(self, ids: list[int]) -> int:
        with torch.no_grad():
            for start in range(0, len(ids), self._block):
                out = self._model.model.read(self._model.tokens(ids[start : start + self._block]), self._memory)
                self._memory = out.memory
                self._features = out.hidden[:, -1:].clone()
        self._recent = [*self._recent, *ids][-MAX_CHAR_BYTES:]
        self._tokens_read += len(ids)
        return len(ids)

    def _next_log_probs(self) -> Tensor:
        with torch.no_grad():
            return self._model.model.log_probs(self._features)[0, 0]
