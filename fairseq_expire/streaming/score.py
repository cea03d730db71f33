"""What a scoring run adds up to, in the units that results are published in."""

import math
from collections.abc import Callable, Iterator, Sized

import torch
from torch import Tensor

from fairseq_expire.tokenizers.manifest import Manifest

# What the numbers of a corpus compare with, by what became of its newlines.
NEWLINES = {
    "keep": "newlines are symbols as other bytes",
    "drop": "newlines left out, as in Transformer-XL and Expire-Span",
    "eos": "newlines as </s>, as in Adaptive-Span",
}


class Tally:
    """Adds up the log-probabilities of targets in double precision.

    Args:
        pad: the symbol that is no target.
    """

    def __init__(self, pad: int):
        self.pad = pad
        self.tokens = 0
        self.nats: Tensor | None = None
        self.averaged = False

    def add(self, probs: Tensor, target: Tensor, *, log_probs: bool) -> None:
        """Add a block.

        Args:
            probs: [B, T, V], logarithms if `log_probs` says so. fairseq asks for probabilities proper only in order to
                average those of several models, which are then not known here.
            target: [B, T].
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
        """All bits so far."""
        return 0.0 if self.nats is None else self.nats.item() / math.log(2)


class TalliedBatches:
    """The batches of a scoring run, each with the tally in it; `on_end` is called with it after the last one.

    Args:
        batches: the batches, of known number.
        tally: where the model adds their log-probabilities.
        on_end: called once if all were read.
    """

    def __init__(self, batches: Sized, tally: Tally, on_end: Callable[[Tally], None]):
        self.batches, self.tally, self.on_end = batches, tally, on_end

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict]:
        for batch in self.batches:
            yield {**batch, "tally": self.tally}
        self.on_end(self.tally)


def score_lines(manifest: Manifest, split: str, *, tokens: int, bits: float) -> list[str]:
    """A line for each unit that the score of a whole split can be given in; none if it is not the whole split.

    Bits of `</s>` and `<unk>` count as all others.

    Args:
        manifest: of the data.
        split: which of its splits.
        tokens, bits: how many tokens were scored, and the sum of their negative logarithms to base 2.
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
    # An untrained model's total is beyond what a float holds.
    exponent = bits / words
    return f"{2**exponent:.2f}" if exponent < 1000 else f"2^{exponent:.0f}"
