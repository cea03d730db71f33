"""fairseq's generator for prompts of any length.

fairseq takes a prompt as the beginning of the hypothesis and generates it token by token: lengths, scores and penalties
are those of prompt and continuation together. They are here, too, but the prompt is read block by block, once for all
of its hypotheses. Then fairseq's loop generates the continuation, and prompt and continuation are joined for the
result.

Size legend: B rows of a batch, N tokens of a row, T tokens of a block; G prompts of P tokens each; S hypotheses in the
beam, V symbols.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from fairseq.data import Dictionary
from fairseq.ngram_repeat_block import NGramRepeatBlock
from fairseq.search import PrefixConstrainedBeamSearch
from fairseq.sequence_generator import EnsembleModel, SequenceGenerator
from torch import Tensor

from fairseq_expire.inference.utf8 import MAX_CHAR_BYTES, Utf8Mask
from fairseq_expire.modules import Memory
from fairseq_expire.tasks.scoring import read_text

_NO_SOURCE = "a language model has no source sentence, only a prompt; leave the option out"
_OTHER_GENERATOR = "only translation models that refine their output in several passes know it; leave the option out"
# Options of fairseq that have no effect here, each with the rest of its error message.
REFUSED = {
    "constraints": "certain words cannot be asked for here; leave the option out",
    "lm_path": "a second language model goes beside the first, --path a.pt:b.pt, and their probabilities are averaged",
    "match_source_len": _NO_SOURCE + ", and give the length with --min-len and --max-len-b",
    "print_alignment": _NO_SOURCE,
    "print_step": _OTHER_GENERATOR,
    "replace_unk": _NO_SOURCE,
    "retain_dropout": "the models here are read without dropout; leave the option out",
    "retain_iter_history": _OTHER_GENERATOR,
    "decoding_format": _OTHER_GENERATOR,
}


def check_generation_options(options: Any) -> None:
    """Raises ValueError if fairseq's ``GenerationConfig`` has an option that would have no effect."""
    for name, reason in REFUSED.items():
        if name in options and getattr(options, name):
            raise ValueError(f"--{name.replace('_', '-')}: {reason}")


@dataclass(frozen=True)
class Prompts:
    """Prompts that hypotheses continue. To fairseq this is the output of an encoder.

    Args:
        tokens: [G, 1 + P], with a ``</s>`` in front.
        memories: for each model its memory of all tokens but the last (None if that is nothing); emptied when the
            incremental states have taken them over.
        rows: [S], the prompt of each hypothesis.
        max_new_tokens: how many tokens may be generated.
    """

    tokens: Tensor
    memories: list[Memory | None]
    rows: Tensor
    max_new_tokens: int


class MemoryEnsemble(EnsembleModel):
    """Models that continue prompts. Each hypothesis has its own memory in each model's incremental state, reordered
    with the beam.

    Args:
        models: an ensemble, whose probabilities are averaged.
        no_repeat_ngram_size: no n-gram of this size is generated that prompt or hypothesis have already; 0 allows all.
        utf8: the mask of possible next bytes if the output has to be UTF-8; None otherwise.
    """

    def __init__(self, models, *, no_repeat_ngram_size: int, utf8: Utf8Mask | None):
        super().__init__(models)
        self.blocked = NGramRepeatBlock(no_repeat_ngram_size) if no_repeat_ngram_size else None
        self.utf8 = utf8

    def forward_encoder(self, net_input) -> Prompts:
        return net_input["prompts"]

    def reorder_encoder_out(self, encoder_outs: Prompts, new_order: Tensor) -> Prompts:
        return replace(encoder_outs, rows=encoder_outs.rows.index_select(0, new_order))

    def forward_decoder(self, tokens: Tensor, encoder_outs: Prompts, incremental_states, temperature: float = 1.0):
        """Returns the log-probabilities [S, V] of the next token, and None for attention.

        Args:
            tokens: [S, 1 + generated]; the first one stands for the last token of the prompt.
            encoder_outs: the prompts.
            incremental_states: one for each model.
            temperature: divides the scores.
        """
        prompts, generated = encoder_outs, tokens[:, 1:]
        if prompts.memories:
            for model, state, memory in zip(self.models, incremental_states, prompts.memories):
                if memory is not None:
                    model.decoder.start_from(state, memory.reorder(prompts.rows), 0)
            prompts.memories.clear()
        last = prompts.tokens[:, -1:][prompts.rows]
        log_probs, attention = super().forward_decoder(
            torch.cat([last, generated], dim=1), None, incremental_states, temperature
        )
        if self.utf8 is not None:
            log_probs = self._mask_utf8(log_probs, prompts, generated)
        if self.blocked is not None:
            whole = torch.cat([prompts.tokens[prompts.rows], generated], dim=1)
            free = self.blocked(whole, log_probs.clone(), bsz=len(whole), beam_size=1, step=whole.size(1) - 1)
            # A character that has begun is completed even by a repeated n-gram.
            log_probs = torch.where(free.isneginf().all(dim=1, keepdim=True), log_probs, free)
        return log_probs, attention

    def _mask_utf8(self, log_probs: Tensor, prompts: Prompts, generated: Tensor) -> Tensor:
        """Masks the tokens [S, V] after which the text could not be completed to UTF-8 in the tokens that are left.

        Raises:
            ValueError: a prompt ends in a character that cannot be completed.
        """
        tokens_left = prompts.max_new_tokens - generated.size(1)
        if not tokens_left:
            # fairseq allows only </s> now.
            return log_probs
        tokens = torch.cat([prompts.tokens[:, 1:][:, -MAX_CHAR_BYTES:][prompts.rows], generated], dim=1)
        valid = torch.ones_like(log_probs, dtype=torch.bool)
        # After the first step, a text that cannot be completed is an impossible one, with which a beam is filled up.
        possible = self.utf8.needed(tokens) <= tokens_left if generated.size(1) else valid.new_ones(len(valid))
        if possible.any():
            valid[possible] = self.utf8(tokens[possible], tokens_left)
        return log_probs.masked_fill(~valid, -torch.inf)


class Lengths(NamedTuple):
    """The lengths that fairseq's options ask for, of prompt and continuation together."""

    max_len_a: float
    max_len_b: int
    min_len: int

    def max_new_tokens(self, prompt: int) -> int:
        """Returns how many tokens may be generated after a prompt of so many tokens.

        Raises:
            ValueError: none, or fewer than ``--min-len`` asks for.
        """
        # As in fairseq, the length that --max-len-a multiplies includes the `</s>` in front of the text.
        limit = int(self.max_len_a * (prompt + 1) + self.max_len_b)
        reason = (
            f"a prompt has {prompt} tokens, and --max-len-a {self.max_len_a:g} with --max-len-b {self.max_len_b} "
            f"allows {limit} in all, prompt included"
        )
        if limit <= prompt:
            raise ValueError(
                f"{reason}, so nothing can be added: give --max-len-a 1, and as --max-len-b how much is to be written"
            )
        if limit < self.min_len:
            raise ValueError(f"{reason}, fewer than --min-len {self.min_len}: raise the one or lower the other")
        return limit - prompt


class MemoryGenerator(SequenceGenerator):
    """fairseq's generator for prompts of any length.

    Args:
        models: an ensemble.
        tgt_dict: the dictionary of the models.
        block: T, tokens of a prompt that are read at once.
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
        # fairseq's attributes of these names are set anew for each prompt, because its loop sees the continuation
        # alone.
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
        """Returns the hypotheses of each row, best first.

        Args:
            sample: fairseq's batch. In its ``net_input``, ``src_tokens`` [B, 1 + N] are the prompts with a ``</s>`` in
                front, padded at the end; ``src_lengths`` [B] are their lengths including it.
            prefix_tokens: [B, N], prompts to take in place of ``src_tokens``, without ``</s>`` in front. If one is a
                whole text that ends in ``</s>``, this ``</s>`` is left out and the text is continued.
            constraints: None; see :data:`REFUSED`.
            bos_token: the token in front of ``prefix_tokens`` if not ``</s>``.
        Raises:
            ValueError: a prompt leaves no token to generate, or ends in a character that cannot be completed.
        """
        prompts = sample["net_input"]["src_tokens"]
        sizes = sample["net_input"]["src_lengths"]
        if prefix_tokens is not None:
            start = self.eos if bos_token is None else bos_token
            prompts = torch.cat([prefix_tokens.new_full((len(prefix_tokens), 1), start), prefix_tokens], dim=1)
            sizes = 1 + self._prefix_sizes(sample, prefix_tokens)
        numbers = sample["id"] if "id" in sample else torch.arange(len(prompts), device=prompts.device)
        found: list[list[dict[str, Tensor]]] = [[] for _ in prompts]
        # All rows of a memory have read equally many tokens, so prompts are grouped by length.
        for size in sizes.unique().tolist():
            rows = sizes.eq(size).nonzero().squeeze(1)
            for row, hypotheses in zip(rows.tolist(), self._continue(prompts[rows, :size], numbers[rows])):
                found[row] = hypotheses
        return found

    def _prefix_sizes(self, sample: dict, prefixes: Tensor) -> Tensor:
        """Returns the lengths [B] int64 of prefixes [B, N], without the ``</s>`` that ends a whole text."""
        width = prefixes.size(1)
        if "target_lengths" in sample and torch.equal(sample["target"][:, :width], prefixes):
            # fairseq-generate has cut the prefixes from items: one that is shorter than its item has not ended.
            whole = sample["target_lengths"]
        else:
            places = torch.arange(1, width + 1, device=prefixes.device)
            whole = (places * prefixes.ne(self.pad)).amax(dim=1)
        sizes = whole.clamp(max=width)
        ends = prefixes.gather(1, (sizes - 1).clamp(min=0).unsqueeze(1)).squeeze(1).eq(self.eos)
        return sizes - (ends & (sizes == whole) & (sizes > 0)).long()

    def _continue(self, prompts: Tensor, numbers: Tensor) -> list[list[dict[str, Tensor]]]:
        """Returns the hypotheses of each prompt [G, 1 + P]; ``numbers`` [G] are those of their rows."""
        length = prompts.size(1) - 1
        max_new_tokens = self.lengths.max_new_tokens(length)
        self.max_len_a, self.max_len_b, self.min_len = 0, max_new_tokens, max(0, self.lengths.min_len - length)
        scores, memories = read_text(
            self.model.models, prompts[:, :-1], prompts[:, 1:], block=self.block, temperature=self.temperature
        )
        scores = scores - self.unk_penalty * prompts[:, 1:].eq(self.unk)
        if self.allowed is not None:
            before = dict(zip(numbers.tolist(), prompts))
            self.search.prefix_allowed_tokens_fn = lambda number, tokens: self.allowed(
                number, torch.cat([before[number], tokens[1:]])
            )
        rows = torch.arange(len(prompts), device=prompts.device)
        continued = Prompts(prompts, memories, rows, max_new_tokens)
        generated = super()._generate({"id": numbers, "net_input": {"src_tokens": prompts, "prompts": continued}})
        return [
            sorted((self._joined(prompt[1:], own, part) for part in parts), key=lambda whole: -whole["score"].item())
            for prompt, own, parts in zip(prompts, scores, generated)
        ]

    def _joined(self, prompt: Tensor, scores: Tensor, generated: dict[str, Tensor]) -> dict[str, Tensor]:
        """Joins a prompt [P] with its scores [P] and a continuation to one hypothesis."""
        tokens = torch.cat([prompt, generated["tokens"]])
        score = scores.sum() + generated["score"]
        if self.normalized:
            score = score / len(tokens) ** self.len_penalty
        positional = torch.cat([scores, generated["positional_scores"]])
        return {**generated, "tokens": tokens, "score": score, "positional_scores": positional}
