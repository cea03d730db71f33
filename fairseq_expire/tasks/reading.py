"""Reading texts block by block with one or several models, and what they give to each token.

Size legend: B rows, N tokens of a row, T tokens of a block.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from fairseq.data import Dictionary
from torch import Tensor

from fairseq_expire.models.memory_lm import MemoryLanguageModel
from fairseq_expire.modules import Memory


class Read(NamedTuple):
    """[B, N] log-probabilities of the targets, averaged over the models, and what each model remembers (None of nothing)."""

    scores: Tensor
    memories: list[Memory | None]


def read(
    models: Sequence[MemoryLanguageModel], tokens: Tensor, targets: Tensor, *, block: int, temperature: float = 1.0
) -> Read:
    """Reads texts from their start.

    Args:
        models: whose probabilities are averaged.
        tokens: [B, N] int64; padding stands at the end of a row.
        targets: [B, N], what follows each of them.
        block: T.
        temperature: as in :class:`fairseq.sequence_generator.SequenceGenerator`.
    """
    memories: list[Memory | None] = [None] * len(models)
    scores = torch.zeros(tokens.shape, device=tokens.device)
    for start in range(0, tokens.size(1), block):
        part = slice(start, start + block)
        each = []
        for number, model in enumerate(models):
            out, extra = model(tokens[:, part], memory=memories[number])
            memories[number] = extra["memory"]
            log_probs = model.get_normalized_probs((out.div_(temperature), extra), log_probs=True)
            each.append(log_probs.gather(2, targets[:, part].unsqueeze(2)).squeeze(2).float())
        scores[:, part] = torch.logsumexp(torch.stack(each), dim=0) - math.log(len(models))
    return Read(scores, memories)


class BlockScorer:
    """Scores whole texts as ``fairseq.sequence_scorer.SequenceScorer`` does, but of any length: read block by block.

    Args:
        dictionary: of the models.
        block: T.
    """

    def __init__(self, dictionary: Dictionary, *, block: int):
        self.block = block
        self.symbols_to_strip_from_output = {dictionary.eos()}

    @torch.no_grad()
    def generate(
        self, models: Sequence[MemoryLanguageModel], sample: dict, prefix_tokens=None, constraints=None
    ) -> list[list[dict]]:
        """For each row of a batch its target as the one hypothesis, with the scores of its tokens and their mean; what fairseq
        hands to other generators does not matter to it."""
        for model in models:
            model.eval()
        target = sample["target"]
        scores = read(models, sample["net_input"]["src_tokens"], target, block=self.block).scores
        hypotheses = []
        for row, row_scores, length in zip(target, scores, sample["target_lengths"].tolist()):
            tokens, own = row[:length], row_scores[:length]
            hypotheses.append(
                [
                    {
                        "tokens": tokens,
                        "score": own.mean(),
                        "attention": None,
                        "alignment": None,
                        "positional_scores": own,
                    }
                ]
            )
        return hypotheses
