"""The score of a split, in the units in which results are published."""

import math
from collections.abc import Callable, Iterator, Sized

import torch
from torch import Tensor

from fairseq_expire.tokenizers.manifest import Manifest

# Notes on the treatment of newlines: scores compare only with those of the same treatment.
NEWLINES = {
    "keep": "newlines are symbols as other bytes",
    "drop": "newlines left out, as in Transformer-XL and Expire-Span",
    "eos": "newlines as </s>, as in Adaptive-Span",
}


class ScoreSum:
    """Sum of the log-probabilities of targets, in double precision.

    Args:
        pad: index of the padding symbol, which is no target.
    """

    def __init__(self, pad: int):
        self.pad = pad
        self.tokens = 0
        # Negative sum in units of the natural logarithm, on the model's device.
        self.nats: Tensor | None = None
        # True if probabilities of several models are averaged, so that this sum cannot be known here.
        self.averaged = False

    def add(self, probs: Tensor, target: Tensor, *, log_probs: bool) -> None:
        """Adds the targets of a block.

        Args:
            probs: [B, T, V] log-probabilities, or probabilities, which fairseq asks for to average several models.
            target: [B, T] int64.
            log_probs: True if ``probs`` are log-probabilities.
        """
        if not log_probs:
            self.averaged = True
            return
        real = target != self.pad
        scores = probs.gather(2, target.unsqueeze(-1)).squeeze(-1).masked_fill(~real, 0)
        nats = -scores.sum(dtype=torch.float64)
        self.nats = nats if self.nats is None else self.nats + nats
        self.tokens += int(real.sum())

    @property
    def bits(self) -> float:
        """Negative sum of the base-2 logarithms."""
        return 0.0 if self.nats is None else self.nats.item() / math.log(2)


class ScoringBatches:
    """The batches of a scoring run, each with the sum that its score is added to.

    Args:
        batches: the batches.
        score_sum: the sum; each batch has it as ``score_sum``.
        on_end: called with the sum after the last batch.
    """

    def __init__(self, batches: Sized, score_sum: ScoreSum, on_end: Callable[[ScoreSum], None]):
        self.batches, self.score_sum, self.on_end = batches, score_sum, on_end

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict]:
        for batch in self.batches:
            yield {**batch, "score_sum": self.score_sum}
        self.on_end(self.score_sum)


def score_lines(manifest: Manifest, split: str, *, tokens: int, bits: float) -> list[str]:
    """Expresses the score of a whole split in every unit that applies, such as bits per byte.

    Bits of ``</s>`` and ``<unk>`` count like those of other tokens.

    Args:
        manifest: the manifest of the data.
        split: the name of the split.
        tokens: number of tokens that were scored.
        bits: negative sum of their base-2 log-probabilities.
    Returns:
        a line for each unit; none if the manifest lacks the split, or only a part of it was scored.
    """
    counts = manifest.splits.get(split)
    if counts is None or counts.tokens != tokens:
        return []
    level, note = manifest.level, ""
    if "newlines" in manifest.options:
        note = f" ({NEWLINES[manifest.options['newlines']]})"
    lines = []
    if level in ("chars", "subword"):
        lines.append(f"{bits / counts.text_chars:.4f} bits per character over {counts.text_chars:,} characters")
    if level in ("bytes", "chars", "subword"):
        lines.append(f"{bits / counts.text_bytes:.4f} bits per byte over {counts.text_bytes:,} bytes{note}")
    if level == "words":
        lines.append(f"word perplexity {_perplexity(bits, tokens)} over {tokens:,} words and line ends")
    if counts.words:
        how = manifest.source.get("words", "counted")
        lines.append(f"word perplexity {_perplexity(bits, counts.words)} over {counts.words:,} words, {how}")
    if counts.unknown:
        lines.append(f"{counts.unknown:,} of the tokens are <unk>, for symbols that the dictionary lacks")
    return lines


def _perplexity(bits: float, words: int) -> str:
    # The perplexity of an untrained model can exceed the range of a float.
    exponent = bits / words
    return f"{2**exponent:.2f}" if exponent < 1000 else f"2^{exponent:.0f}"
