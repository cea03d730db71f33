"""The score of a split, in the units in which results are published."""

import math
from collections.abc import Callable, Iterator, Sequence, Sized

import torch
from torch import Tensor

from fairseq_expire.tokenizers.manifest import Manifest

# The errors of single labels are shown up to this size of their dictionary.
MOST_LABELS = 104

# Notes on the treatment of newlines: scores compare only with those of the same treatment.
NEWLINES = {
    "keep": "newlines are symbols as other bytes",
    "drop": "newlines left out, as in Transformer-XL and Expire-Span",
    "eos": "newlines as </s>, as in Adaptive-Span",
}


class ScoreSum:
    """Sum of the log-probabilities of targets, in double precision, and the number of those that were missed.

    Args:
        pad: index of the padding symbol, which is no target.
        num_labels: number of labels; None in a language model, where only answers are looked at.
    """

    def __init__(self, pad: int, num_labels: int | None = None):
        self.pad, self.num_labels = pad, num_labels
        self.tokens = 0
        # Negative sum in units of the natural logarithm, on the model's device.
        self.nats: Tensor | None = None
        # True if probabilities of several models are averaged, so that this sum cannot be known here.
        self.averaged = False
        # [num_labels], how often each label was to be predicted, and how often it was missed.
        self.label_counts, self.label_missed = (torch.zeros(num_labels or 0, dtype=torch.int64) for _ in range(2))
        self.answers = self.wrong_answers = 0
        # Of the current batch: fairseq may ask for the targets in several parts (--softmax-batch).
        self._missed: list[Tensor] = []

    def add(self, probs: Tensor, sample: dict, *, log_probs: bool) -> None:
        """Adds targets of a batch.

        Args:
            probs: [B, C, V] log-probabilities, or probabilities, which fairseq asks for to average several models.
            sample: the batch, whose ``target`` is [B, C] int64. Both may be a part of it, [1, n, V] and [1, n].
            log_probs: True if ``probs`` are log-probabilities.
        """
        if not log_probs:
            self.averaged = True
            return
        target = sample["target"]
        real = target != self.pad
        scores = probs.gather(2, target.unsqueeze(-1)).squeeze(-1).masked_fill(~real, 0)
        nats = -scores.sum(dtype=torch.float64)
        self.nats = nats if self.nats is None else self.nats + nats
        self.tokens += int(real.sum())
        if self.num_labels is None and "answers" not in sample:
            return
        missed = (probs.argmax(dim=-1) != target) & real
        if self.num_labels is not None:
            self.label_counts += target[real].bincount(minlength=self.num_labels).cpu()
            self.label_missed += target[missed].bincount(minlength=self.num_labels).cpu()
        self._count_answers(missed, sample)

    def _count_answers(self, missed: Tensor, sample: dict) -> None:
        flags = sample["answers"]
        self._missed.append(missed.flatten())
        if sum(part.numel() for part in self._missed) < flags.numel():
            return
        missed, self._missed = torch.cat(self._missed).view(flags.shape), []
        found = sample["tally"].count(missed, flags, offset=sample["offset"])
        self.answers += found.answers
        self.wrong_answers += found.wrong

    @property
    def bits(self) -> float:
        """Negative sum of the base-2 logarithms."""
        return 0.0 if self.nats is None else self.nats.item() / math.log(2)

    def error_lines(self, labels: Sequence[str]) -> list[str]:
        """Returns lines on the labels and answers that were missed; none in a language model without answers.

        Args:
            labels: the symbols of the labels' dictionary.
        """
        lines = []
        if self.num_labels is not None:
            lines.append(f"error {_percent(self.label_missed.sum(), self.label_counts.sum())} labels")
            occurring = self.label_counts.nonzero().squeeze(1).tolist()
            for number in occurring if len(labels) <= MOST_LABELS else []:
                missed, count = self.label_missed[number], self.label_counts[number]
                lines.append(f"error of {labels[number]}: {_percent(missed, count)}")
        if self.answers:
            lines.append(f"answer error {_percent(self.wrong_answers, self.answers)} answers")
        return lines


def _percent(part: Tensor | int, of: Tensor | int) -> str:
    return f"{100 * int(part) / max(1, int(of)):.2f} % of {int(of):,}"


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
