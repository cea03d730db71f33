"""Texts of any length, read block by block and scored by an ensemble.

Size legend: B rows of a batch, N tokens of a row, T tokens of a block.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from fairseq.data import Dictionary
from torch import Tensor

from fairseq_expire.models.memory_lm import MemoryLanguageModel
from fairseq_expire.modules import Memory


class ReadText(NamedTuple):
    """Log-probabilities [B, N] of the targets, averaged over the models, and each model's memory (None if it has read
    nothing).
    """

    scores: Tensor
    memories: list[Memory | None]


def read_text(
    models: Sequence[MemoryLanguageModel], tokens: Tensor, targets: Tensor, *, block: int, temperature: float = 1.0
) -> ReadText:
    """Reads texts from their start, block by block.

    Args:
        models: an ensemble, whose probabilities are averaged.
        tokens: [B, N] int64; padding is at the end of a row.
        targets: [B, N], the next token at each position.
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
    return ReadText(scores, memories)


class BlockScorer:
    """Scores whole texts of any length, as ``fairseq.sequence_scorer.SequenceScorer`` scores short ones.

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
        """Returns for each row of a batch one hypothesis: its target, with the scores of the tokens and their mean.

        Args:
            models: an ensemble.
            sample: fairseq's batch.
            prefix_tokens, constraints: ignored; fairseq passes them to every generator.
        """
        for model in models:
            model.eval()
        target = sample["target"]
        scores = read_text(models, sample["net_input"]["src_tokens"], target, block=self.block).scores
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
