"""Going on from a prompt with fairseq's generator, whose options keep their meaning.

Size legend: B rows of a batch, G of them with prompts of the same P tokens.

To fairseq a prompt is the beginning of the hypothesis, which it is made to write: lengths, scores and penalties are about
prompt and continuation together. So they are here, but the prompt is not written token by token. It is read block by block,
once for all hypotheses; fairseq's loop then writes what comes after it; and what is handed back is put together again.
"""

from typing import Any, NamedTuple

import torch
from fairseq.data import Dictionary
from fairseq.search import PrefixConstrainedBeamSearch
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor

from fairseq_expire.inference.utf8 import Utf8Mask
from fairseq_expire.tasks.hypotheses import MemoryEnsemble, Prompts
from fairseq_expire.tasks.reading import read

NO_SOURCE = "a language model has no source sentence, only a prompt; leave the option out"
OTHER_GENERATOR = "only translation models that refine their output in several passes know it; leave the option out"
# Options of fairseq that would be without effect here, and what is to be said about each.
REFUSED = {
    "constraints": "certain words cannot be asked for here; leave the option out",
    "lm_path": "a second language model goes beside the first, --path a.pt:b.pt, and their probabilities are averaged",
    "match_source_len": NO_SOURCE + ", and give the length with --min-len and --max-len-b",
    "print_alignment": NO_SOURCE,
    "print_step": OTHER_GENERATOR,
    "replace_unk": NO_SOURCE,
    "retain_dropout": "the models here are read without dropout; leave the option out",
    "retain_iter_history": OTHER_GENERATOR,
    "decoding_format": OTHER_GENERATOR,
}


def check_generation_options(options: Any) -> None:
    """Raises ValueError if fairseq's ``GenerationConfig`` asks for what cannot be done."""
    for name, reason in REFUSED.items():
        if name in options and getattr(options, name):
            raise ValueError(f"--{name.replace('_', '-')}: {reason}")


class Lengths(NamedTuple):
    """What was asked for, of prompt and continuation together."""

    max_len_a: float
    max_len_b: int
    min_len: int

    def room(self, prompt: int) -> int:
        """How many tokens may be written after so many of a prompt. Raises ValueError if none, or fewer than there must be."""
        # As in fairseq, x is the length with the `</s>` that stands before the text.
        whole = int(self.max_len_a * (prompt + 1) + self.max_len_b)
        limit = (
            f"a prompt has {prompt} tokens, and --max-len-a {self.max_len_a:g} with --max-len-b {self.max_len_b} allows "
            f"{whole} in all, prompt included"
        )
        if whole <= prompt:
            raise ValueError(
                f"{limit}, so nothing can be added: give --max-len-a 1, and as --max-len-b how much is to be written"
            )
        if whole < self.min_len:
            raise ValueError(f"{limit}, fewer than --min-len {self.min_len}: raise the one or lower the other")
        return whole - prompt


class MemoryGenerator(SequenceGenerator):
    """fairseq's generator for prompts of any length.

    Args:
        models: an ensemble.
        tgt_dict: their dictionary.
        block: tokens of a prompt that are read at once.
        utf8, no_repeat_ngram_size: see :class:`MemoryEnsemble`.
        options: of :class:`SequenceGenerator`.
    """

    def __init__(
        self,
        models,
        tgt_dict: Dictionary,
        *,
        block: int,
        utf8: Utf8Mask | None = None,
        no_repeat_ngram_size: int = 0,
        **options,
    ):
        ensemble = MemoryEnsemble(models, no_repeat_ngram_size=no_repeat_ngram_size, utf8=utf8)
        super().__init__(ensemble, tgt_dict, **options)
        self.block = block
        # fairseq's own attributes of these names are set for each prompt: its loop is about the continuation alone.
        self.lengths = Lengths(self.max_len_a, self.max_len_b, self.min_len)
        self.normalized, self.normalize_scores = self.normalize_scores, False
        self.allowed = (
            self.search.prefix_allowed_tokens_fn if isinstance(self.search, PrefixConstrainedBeamSearch) else None
        )

    def _generate(
        self,
        sample: dict,
        prefix_tokens: Tensor | None = None,
        constraints: None = None,
        bos_token: int | None = None,
    ) -> list[list[dict[str, Tensor]]]:
        """For each row the hypotheses, best first.

        Args:
            sample: fairseq's batch; ``src_tokens`` in its ``net_input`` are the prompts behind a ``</s>``, [B, 1 + N],
                padded at the end, ``src_lengths`` [B] their lengths with it.
            prefix_tokens: [B, N], prompts without ``</s>`` in front to take instead; one that is a whole text and ends in it goes
                on in its place.
            constraints: None; see :data:`REFUSED`.
            bos_token: what stands before ``prefix_tokens`` if not ``</s>``.
        Raises:
            ValueError: if a prompt leaves no room for a token, or ends in a character that cannot be completed.
        """
        prompts = sample["net_input"]["src_tokens"]
        sizes = sample["net_input"]["src_lengths"]
        if prefix_tokens is not None:
            start = self.eos if bos_token is None else bos_token
            prompts = torch.cat([prefix_tokens.new_full((len(prefix_tokens), 1), start), prefix_tokens], dim=1)
            sizes = 1 + self._prefix_sizes(sample, prefix_tokens)
        numbers = sample["id"] if "id" in sample else torch.arange(len(prompts), device=prompts.device)
        found: list[list[dict[str, Tensor]]] = [[] for _ in prompts]
        # A memory has read equally many tokens in each of its rows, so prompts of one length go together.
        for size in sizes.unique().tolist():
            rows = sizes.eq(size).nonzero().squeeze(1)
            for row, hypotheses in zip(rows.tolist(), self._go_on(prompts[rows, :size], numbers[rows])):
                found[row] = hypotheses
        return found

    def _prefix_sizes(self, sample: dict, prefixes: Tensor) -> Tensor:
        """[B] int64, how many tokens of each prefix [B, N] are its prompt: all but the ``</s>`` that ends a whole text."""
        width = prefixes.size(1)
        if "target_lengths" in sample and torch.equal(sample["target"][:, :width], prefixes):
            # The beginnings of items, as fairseq-generate cuts them: one that is shorter than its item has not ended.
            whole = sample["target_lengths"]
        else:
            places = torch.arange(1, width + 1, device=prefixes.device)
            whole = (places * prefixes.ne(self.pad)).amax(dim=1)
        sizes = whole.clamp(max=width)
        ends = prefixes.gather(1, (sizes - 1).clamp(min=0).unsqueeze(1)).squeeze(1).eq(self.eos)
        return sizes - (ends & (sizes == whole) & (sizes > 0)).long()

    def _go_on(self, prompts: Tensor, numbers: Tensor) -> list[list[dict[str, Tensor]]]:
        """The same for prompts of one length, [G, 1 + P], with the numbers of their rows [G]."""
        length = prompts.size(1) - 1
        room = self.lengths.room(length)
        self.max_len_a, self.max_len_b, self.min_len = 0, room, max(0, self.lengths.min_len - length)
        scores, memories = read(
            self.model.models, prompts[:, :-1], prompts[:, 1:], block=self.block, temperature=self.temperature
        )
        scores = scores - self.unk_penalty * prompts[:, 1:].eq(self.unk)
        if self.allowed is not None:
            before = dict(zip(numbers.tolist(), prompts))
            self.search.prefix_allowed_tokens_fn = lambda number, tokens: self.allowed(
                number, torch.cat([before[number], tokens[1:]])
            )
        rows = torch.arange(len(prompts), device=prompts.device)
        written = super()._generate(
            {"id": numbers, "net_input": {"src_tokens": prompts, "prompts": Prompts(prompts, memories, rows, room)}}
        )
        return [
            sorted((self._whole(prompt[1:], own, part) for part in parts), key=lambda whole: -whole["score"].item())
            for prompt, own, parts in zip(prompts, scores, written)
        ]

    def _whole(self, prompt: Tensor, scores: Tensor, written: dict[str, Tensor]) -> dict[str, Tensor]:
        """A prompt [P] with its scores [P], and what was written after it, as one hypothesis."""
        tokens = torch.cat([prompt, written["tokens"]])
        score = scores.sum() + written["score"]
        if self.normalized:
            score = score / len(tokens) ** self.len_penalty
        positional = torch.cat([scores, written["positional_scores"]])
        return {**written, "tokens": tokens, "score": score, "positional_scores": positional}
