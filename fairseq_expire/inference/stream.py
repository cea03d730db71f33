"""A text that is read as it arrives, and goes on as a model would write it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from fairseq_expire.files import write_atomically
from fairseq_expire.inference.sampling import Sampler
from fairseq_expire.inference.utf8 import Utf8Mask
from fairseq_expire.modules import Memory
from fairseq_expire.tokenizers.bound import DECODING_ERRORS, BoundTokenizer, StreamEncoder, Text

if TYPE_CHECKING:
    from fairseq_expire.inference.text_model import TextModel

# Tokens that text which goes on has to know of: no character has more bytes.
RECENT = 4


@dataclass(frozen=True, eq=False)
class Distribution:
    """What may come next.

    Args:
        codec: whose symbols these are.
        log_probs: [V], the natural logarithms of the probabilities, on the CPU.
    """

    codec: BoundTokenizer
    log_probs: Tensor

    def __getitem__(self, symbol: str) -> float:
        """The log-probability of a symbol by its name in the dictionary. Raises KeyError if it is not there."""
        return self.log_probs[self.codec.dictionary.indices[symbol]].item()

    def top(self, number: int) -> list[tuple[str, float]]:
        """The most likely symbols with their log-probabilities."""
        best = self.log_probs.topk(min(number, len(self.log_probs)))
        return [(self.codec.symbols[index], value) for value, index in zip(best.values.tolist(), best.indices.tolist())]


class Stream:
    """One text, of any length, and what a model remembers of it. ``TextModel.stream`` begins one.

    Args:
        model: that reads.
        block: tokens that are read at once.
    """

    def __init__(self, model: "TextModel", *, block: int):
        self._model = model
        self._block = block
        self._encoder = model.codec.stream_encoder()
        self._memory: Memory | None = None
        self._features = torch.empty(0)
        self._recent: list[int] = []
        # Of the text, without the </s> in front.
        self.tokens_read = 0
        self._read([model.codec.eos])
        self._recent, self.tokens_read = [], 0

    def feed(self, text: Text) -> int:
        """Reads more of the text, cut anywhere; says how many tokens that was.

        What has only begun (a character, a word, a line end) waits for the rest in :attr:`held`. Raises ValueError if the text
        has bytes that are not UTF-8 and a symbol is not a byte; nothing of it is read then.
        """
        return self._read(self._encoder.feed(text))

    def flush(self) -> int:
        """Reads what is held, as if the text ended there; says how many tokens that was."""
        return self._read(self._encoder.flush())

    @property
    def held(self) -> bytes:
        """Text that was fed and is not read yet."""
        return self._encoder.held

    def next_distribution(self) -> Distribution:
        """What may follow all that was read."""
        return Distribution(self._model.codec, self._next_log_probs().cpu())

    @property
    def memory_bytes(self) -> int:
        """Size of all that is remembered."""
        return self._memory.nbytes

    @property
    def memory_sizes(self) -> tuple[int, ...]:
        """How many states each layer remembers."""
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
        """How the text may go on, a piece at a time; what is written is read as the rest of the text.

        Text that is held is read first. Padding and ``<s>``, which no text has, are never written.

        Args:
            max_tokens: how many tokens to write at most; None for no end.
            greedy, temperature, top_k, top_p, seed: see :class:`Sampler`.
            utf8: of a model of bytes: write valid UTF-8, complete at the end.
            stop_at_eos: end where the model writes ``</s>``.
            errors: what becomes of written bytes that are not UTF-8, as in :meth:`bytes.decode`: U+FFFD for each ("replace"), or
                lone surrogates ("surrogateescape"), of which ``"".join(pieces).encode("utf-8", "surrogateescape")`` makes exactly
                the bytes that were written. What a prompt has begun of a character comes again with its end in the first, not
                in the second.
        Returns:
            an iterator over pieces of text. A piece comes as soon as its last token is there.
        Raises:
            ValueError: if a value is outside its range; if ``utf8`` is asked of another model; if the text ends in a character
                that cannot be completed.
        """
        if max_tokens is not None and max_tokens < 1:
            raise ValueError(f"max_tokens is how many tokens to write: expected at least 1 or none, got {max_tokens}")
        if errors not in DECODING_ERRORS:
            raise ValueError(f"errors is {errors!r}, expected one of {', '.join(DECODING_ERRORS)}")
        sampler = Sampler(greedy=greedy, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        mask = self._model.utf8_mask if utf8 else None
        self.flush()
        if mask is not None:
            # Says now what cannot be completed.
            mask(torch.tensor([self._recent], dtype=torch.int64), max_tokens or RECENT)
        return self._written(sampler, mask, max_tokens, stop_at_eos, errors)

    def _written(
        self, sampler: Sampler, mask: Utf8Mask | None, max_tokens: int | None, stop_at_eos: bool, errors: str
    ) -> Iterator[str]:
        codec = self._model.codec
        decoder = codec.stream_decoder(errors)
        for index in self._recent:
            # A space before the next word, the rest of a character: that depends on what there is already.
            decoder.feed(index)
        if errors == "surrogateescape":
            # The beginning of a character is then not written again.
            decoder.flush()
        for left in repeat(RECENT) if max_tokens is None else range(max_tokens, 0, -1):
            log_probs = self._next_log_probs().cpu()
            log_probs[[codec.dictionary.bos(), codec.pad]] = -torch.inf
            if mask is not None:
                allowed = mask(torch.tensor([self._recent], dtype=torch.int64), left)[0]
                log_probs.masked_fill_(~allowed, -torch.inf)
            index = sampler(log_probs)
            if stop_at_eos and index == codec.eos:
                break
            self._read([index])
            piece = decoder.feed(index)
            if piece:
                yield piece
        rest = decoder.flush()
        if rest:
            yield rest

    def state_dict(self) -> dict[str, Tensor]:
        """All there is to know of the text so far, as plain tensors."""
        state = {f"memory.{name}": value for name, value in self._memory.state_dict().items()}
        state["features"] = self._features
        state["recent"] = torch.tensor(self._recent, dtype=torch.int64)
        state["tokens_read"] = torch.tensor(self.tokens_read)
        state["held"] = torch.tensor(list(self.held), dtype=torch.uint8)
        state["weights"] = self._model.fingerprint
        return {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from where :meth:`state_dict` was called.

        Raises:
            ValueError: if the state is of another model, or not one; this stream then is as it was.
        """
        expected = {"features", "recent", "tokens_read", "held", "weights"}
        if not expected <= set(state):
            raise ValueError(f"not the state of a stream: expected {', '.join(sorted(expected))}, got {sorted(state)}")
        if not torch.equal(state["weights"].cpu(), self._model.fingerprint):
            raise ValueError(
                "the state of a stream goes on only with the weights it was made with, and their span_limit; these are others"
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
        self.tokens_read = int(state["tokens_read"])
        self._encoder = StreamEncoder(self._model.codec, bytes(state["held"].tolist()))

    def save(self, path: str | Path) -> None:
        """Writes the state to a file, whole or not at all."""
        write_atomically(Path(path), safetensors.torch.save(self.state_dict()))

    def restore(self, path: str | Path) -> None:
        """Goes on from a file that :meth:`save` wrote.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged, or of another model.
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
        self._recent = [*self._recent, *ids][-RECENT:]
        self.tokens_read += len(ids)
        return len(ids)

    def _next_log_probs(self) -> Tensor:
        with torch.no_grad():
            return self._model.model.log_probs(self._features)[0, 0]
