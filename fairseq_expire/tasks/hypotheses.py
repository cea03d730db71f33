"""What fairseq's generator calls a model, for prompts that have been read and memories that follow the beam.

Size legend: G prompts, all of P tokens; S hypotheses that are being written; V symbols.
"""

from dataclasses import dataclass, replace

import torch
from fairseq.ngram_repeat_block import NGramRepeatBlock
from fairseq.sequence_generator import EnsembleModel
from torch import Tensor

from fairseq_expire.inference.utf8 import LOOK_BACK, Utf8Mask
from fairseq_expire.modules import Memory


@dataclass(frozen=True)
class Prompts:
    """Prompts that the hypotheses go on from; to fairseq, the output of an encoder.

    Args:
        tokens: [G, 1 + P], behind a ``</s>``.
        memories: for each model its memory of all but the last token; emptied when the beam has its own. None of nothing.
        rows: [S], the prompt of each hypothesis.
        room: how many tokens may be written.
    """

    tokens: Tensor
    memories: list[Memory | None]
    rows: Tensor
    room: int


class MemoryEnsemble(EnsembleModel):
    """Models that go on from prompts. Each hypothesis has a memory of its own for each of them, which the decoder keeps in
    the incremental state and reorders with the beam.

    Args:
        models: whose probabilities are averaged.
        no_repeat_ngram_size: a sequence of so many tokens is not written if the prompt or the hypothesis has it; 0: any is.
        utf8: what may come next, if what is written has to be UTF-8.
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
        """[S, V] log-probabilities of the next token, after ``tokens`` [S, 1 + written], of which the first stands for the
        last one of the prompt; and None for attention."""
        prompts, written = encoder_outs, tokens[:, 1:]
        if prompts.memories:
            for model, state, memory in zip(self.models, incremental_states, prompts.memories):
                if memory is not None:
                    model.decoder.start_from(state, memory.reorder(prompts.rows), 0)
            prompts.memories.clear()
        last = prompts.tokens[:, -1:][prompts.rows]
        log_probs, attention = super().forward_decoder(
            torch.cat([last, written], dim=1), None, incremental_states, temperature
        )
        if self.utf8 is not None:
            log_probs = self._only_valid(log_probs, prompts, written)
        if self.blocked is not None:
            whole = torch.cat([prompts.tokens[prompts.rows], written], dim=1)
            free = self.blocked(whole, log_probs.clone(), bsz=len(whole), beam_size=1, step=whole.size(1) - 1)
            # A character that has begun is completed, if need be by what was written before.
            log_probs = torch.where(free.isneginf().all(dim=1, keepdim=True), log_probs, free)
        return log_probs, attention

    def _only_valid(self, log_probs: Tensor, prompts: Prompts, written: Tensor) -> Tensor:
        """[S, V] with what may come next, so that all is UTF-8 and the last character complete when there is no more room.

        Raises:
            ValueError: if a prompt ends in a character that cannot be completed.
        """
        left = prompts.room - written.size(1)
        if not left:
            # Only </s> comes now.
            return log_probs
        tokens = torch.cat([prompts.tokens[:, 1:][:, -LOOK_BACK:][prompts.rows], written], dim=1)
        valid = torch.ones_like(log_probs, dtype=torch.bool)
        # Later, a text that cannot be completed is one that is impossible already, which a beam keeps for want of others.
        possible = self.utf8.needed(tokens) <= left if written.size(1) else valid.new_ones(len(valid))
        if possible.any():
            valid[possible] = self.utf8(tokens[possible], left)
        return log_probs.masked_fill(~valid, -torch.inf)
