"""Scores of a split in published units, and the sum that they are made of."""

import math
from dataclasses import replace

import pytest
import torch

from fairseq_expire.streaming.published_units import ScoreSum, ScoringBatches, score_lines
from fairseq_expire.tokenizers.manifest import Manifest, SplitCounts

COUNTS = SplitCounts(
    tokens=10, items=1, unknown=0, source_bytes=30, text_bytes=20, text_chars=16, text_sha256="ab", bin_crc32=1,
    idx_crc32=2,
)  # fmt: skip


def manifest(level, options=None, source=None, **counts):
    """A manifest of one split, "test", with other counts where they are given."""
    return Manifest(
        version="1", level=level, options=options or {}, source=source or {}, append_eos=False, symbols=9,
        dictionary_sha256="cd", splits={"test": replace(COUNTS, **counts)},
    )  # fmt: skip


@pytest.mark.parametrize(
    "given, expected",
    [
        (
            manifest("bytes", {"newlines": "drop"}),
            ["2.0000 bits per byte over 20 bytes (newlines left out, as in Transformer-XL and Expire-Span)"],
        ),
        (manifest("chars"), ["2.5000 bits per character over 16 characters", "2.0000 bits per byte over 20 bytes"]),
        (manifest("subword"), ["2.5000 bits per character over 16 characters", "2.0000 bits per byte over 20 bytes"]),
        (manifest("words"), ["word perplexity 16.00 over 10 words and line ends"]),
        (
            manifest("chars", source={"words": "as published"}, words=4, unknown=3),
            [
                "2.5000 bits per character over 16 characters",
                "2.0000 bits per byte over 20 bytes",
                "word perplexity 1024.00 over 4 words, as published",
                "3 of the tokens are <unk>, for symbols that the dictionary lacks",
            ],
        ),
    ],
    ids=["bytes", "chars", "subword", "words", "pg19"],
)
def test_units_of_a_score(given, expected):
    assert score_lines(given, "test", tokens=10, bits=40.0) == expected


def test_no_lines_for_a_part_of_a_split_or_an_unknown_split():
    assert score_lines(manifest("bytes"), "test", tokens=9, bits=40.0) == []
    assert score_lines(manifest("bytes"), "test1", tokens=10, bits=40.0) == []


def test_a_huge_perplexity_is_printed():
    assert (
        "word perplexity 2^5000 over 2 words" in score_lines(manifest("chars", words=2), "test", tokens=10, bits=1e4)[2]
    )


def test_the_sum_is_over_targets():
    torch.manual_seed(0)
    log_probs = torch.randn(3, 7, 11).log_softmax(-1)
    target = torch.randint(2, 11, (3, 7))
    target[1, 5:] = 1
    log_probs[1, 6, 1] = -math.inf
    score = ScoreSum(pad=1)
    ends = []
    batches = ScoringBatches([{"block": slice(0, 4)}, {"block": slice(4, 7)}], score, ends.append)
    assert len(batches) == 2
    for batch in batches:
        assert not ends
        batch["score_sum"].add(log_probs[:, batch["block"]], {"target": target[:, batch["block"]]}, log_probs=True)
    assert ends == [score] and score.tokens == 19 and not score.averaged
    expected = -sum(log_probs[b, t, target[b, t]].item() for b in range(3) for t in range(7) if target[b, t] != 1)
    assert score.bits == pytest.approx(expected / math.log(2), rel=1e-6)


def test_averaged_probabilities_are_not_added():
    score = ScoreSum(pad=1)
    score.add(torch.full((1, 1, 2), 0.5), {"target": torch.zeros(1, 1, dtype=torch.long)}, log_probs=False)
    assert score.averaged and score.tokens == 0 and score.bits == 0.0
