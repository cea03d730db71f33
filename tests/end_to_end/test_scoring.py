"""fairseq-eval-lm counts every token, and gives it the probability that a reader who forgets nothing does."""

import math
import re
import sys

import commands
import numpy as np
import pytest
import reader
import torch
from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import MMapIndexedDataset

# Prints what fairseq-eval-lm computes in full precision: the command itself rounds to four digits.
EVAL_LM = """
import sys
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq_cli import eval_lm
args = options.parse_args_and_arch(options.get_eval_lm_parser(), sys.argv[1:])
print("exact", repr(float(eval_lm.main(convert_namespace_to_omegaconf(args))["loss"])))
"""


def exact_loss(data, path, *options):
    output = commands.run(
        sys.executable, "-c", EVAL_LM, data, "--path", path, "--user-dir", commands.USER_DIR, "--task",
        "memory_caching_lm", "--gen-subset", "test", "--cpu", *options,
    )  # fmt: skip
    return float(re.search(r"^exact (\S+)$", output, re.MULTILINE).group(1))


def reader_loss(data, path, rows, limit=None):
    """Mean bits per token of the test split, each of ``rows`` contiguous rows read at once by the independent reader."""
    state = torch.load(path, weights_only=True)
    weights = {k[len("decoder.") :]: v.double().numpy() for k, v in state["model"].items()}
    stack = {k[len("stack.") :]: v for k, v in weights.items() if k.startswith("stack.")}
    settings = state["cfg"]["model"]
    settings = settings if isinstance(settings, dict) else vars(settings)
    mask = reader.expire_span_mask(max_span=settings["max_span"], ramp=settings["span_ramp"], limit=limit)
    items = MMapIndexedDataset(str(data / "test"))
    tokens = np.concatenate([items[n].numpy() for n in range(len(items))])
    eos = Dictionary.load(str(data / "dict.txt")).eos()
    previous = np.concatenate([[eos], tokens[:-1]])
    total = 0.0
    for row in range(rows):
        part = slice(len(tokens) * row // rows, len(tokens) * (row + 1) // rows)
        hidden = weights["embed_tokens.weight"][previous[part]] * math.sqrt(settings["decoder_embed_dim"])
        features = reader.read(stack, hidden, heads=settings["decoder_attention_heads"], pre_norm=False, mask_of=mask)
        scores = features @ weights["output_projection.weight"].T
        scores -= scores.max(-1, keepdims=True)
        logprobs = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
        total -= logprobs[np.arange(len(features)), tokens[part]].sum()
    return total / len(tokens) / math.log(2), len(tokens)


@pytest.mark.parametrize(
    "rows, options",
    [(1, []), (8, ["--batch-size", "8"]), (1, ["--tokens-per-sample", "7"]), (8, ["--batch-size", "8", "--max-tokens", "100"])],
    ids=["default", "8-rows", "short-blocks", "8-rows-short-blocks"],
)
def test_equals_a_reader_that_keeps_everything(data_bin, checkpoint, rows, options):
    expected, _ = reader_loss(data_bin, checkpoint, rows)
    assert exact_loss(data_bin, checkpoint, *options) == pytest.approx(expected, abs=1e-6)


def test_command_prints_the_loss_over_all_tokens(data_bin, checkpoint, corpus):
    tokens, bits = commands.scored(commands.score(data_bin, checkpoint))
    assert tokens == (corpus / "test.txt").stat().st_size == 3001
    assert bits == pytest.approx(reader_loss(data_bin, checkpoint, 1)[0], abs=1e-4)


def test_span_limit(data_bin, checkpoint):
    loss = exact_loss(data_bin, checkpoint, "--model-overrides", "{'span_limit': 5}")
    assert loss == pytest.approx(reader_loss(data_bin, checkpoint, 1, limit=5)[0], abs=1e-6)
    assert abs(loss - reader_loss(data_bin, checkpoint, 1)[0]) > 1e-4


def test_validate_agrees_without_the_penalty(data_bin, checkpoint):
    stats = commands.validate(data_bin, checkpoint, "--batch-size", "1")
    assert stats["nll_loss"] == pytest.approx(reader_loss(data_bin, checkpoint, 1)[0], abs=1e-3)
    assert stats["loss"] > stats["nll_loss"]
    assert stats["memory_size"] > 0 and stats["span_max"] <= 256
    eight = commands.validate(data_bin, checkpoint, "--batch-size", "8", "--num-workers", "2")
    assert eight["nll_loss"] == pytest.approx(reader_loss(data_bin, checkpoint, 8)[0], abs=1e-3)


def test_shards_share_the_tokens(data_bin, checkpoint):
    """Two shards of one row score what one process with two rows does."""
    parts = [
        commands.scored(commands.score(data_bin, checkpoint, "--num-shards", "2", "--shard-id", shard)) for shard in (0, 1)
    ]
    assert sum(tokens for tokens, _ in parts) == 3001
    mean = sum(tokens * bits for tokens, bits in parts) / 3001
    assert mean == pytest.approx(reader_loss(data_bin, checkpoint, 2)[0], abs=1e-3)
