"""Losses of the test split in full precision: that of ``fairseq-eval-lm`` and that of the independent reader."""

import math
import re
import sys

import commands
import numpy as np
import reader
import torch
from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import MMapIndexedDataset

# Runs fairseq-eval-lm and prints the mean of the log-probabilities of its scorer. The command itself adds them up in
# single precision and rounds to four digits.
EVAL_LM = """
import math, sys
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.sequence_scorer import SequenceScorer
from fairseq_cli import eval_lm
scores, generate = [], SequenceScorer.generate
def recorded(*arguments):
    hypotheses = generate(*arguments)
    scores.extend(score for row in hypotheses for score in row[0]["positional_scores"].tolist())
    return hypotheses
SequenceScorer.generate = recorded
args = options.parse_args_and_arch(options.get_eval_lm_parser(), sys.argv[1:])
printed = float(eval_lm.main(convert_namespace_to_omegaconf(args))["loss"])
exact = -math.fsum(scores) / len(scores) / math.log(2)
assert abs(exact - printed) < 1e-5, (exact, printed)
print("exact", repr(exact))
"""


def exact_loss(data, path, *options):
    output = commands.run(
        sys.executable, "-c", EVAL_LM, data, "--path", path, "--user-dir", commands.USER_DIR, "--task",
        "memory_caching_lm", "--gen-subset", "test", "--cpu", *options,
    )  # fmt: skip
    return float(re.search(r"^exact (\S+)$", output, re.MULTILINE).group(1))


def view(arch, settings, limit=None):
    """Arguments of the independent reader for the memory of a model."""
    span = {"max_span": settings["max_span"]}
    if arch.startswith("expire_span_lm"):
        return {"mask_of": reader.expire_span_mask(**span, ramp=settings["span_ramp"], limit=limit)}
    if arch == "adaptive_span_lm":
        return {"mask_of": reader.adaptive_span_mask(**span, ramp=settings["span_ramp"])}
    fixed = {"mask_of": reader.fixed_span_mask(**span)}
    if arch == "compressive_transformer_lm":
        size, rate, pooling = (settings[name] for name in ("compressed_size", "compression_rate", "compression"))
        fixed["compressed_of"] = reader.compressed(**span, size=size, rate=rate, pooling=str(pooling))
    return fixed


def reader_logprobs(path, previous, limit=None, mask_of=None):
    """Log-probabilities [N, V] of the next token by the independent reader, which reads a whole row at once.

    Args:
        path: of the checkpoint.
        previous: ids [N] of the row that is read; ``</s>`` comes first.
    """
    state = torch.load(path, weights_only=True)
    weights = {k[len("decoder.model.") :]: v.double().numpy() for k, v in state["model"].items()}
    stack = {k[len("stack.") :]: v for k, v in weights.items() if k.startswith("stack.")}
    settings = state["cfg"]["model"]
    settings = settings if isinstance(settings, dict) else vars(settings)
    seen = {"mask_of": mask_of} if mask_of else view(settings["_name"], settings, limit)
    hidden = weights["embed_tokens.weight"][previous] * math.sqrt(settings["decoder_embed_dim"])
    features = reader.read(stack, hidden, heads=settings["decoder_attention_heads"], pre_norm=False, **seen)
    scores = features @ weights["output_projection.weight"].T
    scores -= scores.max(-1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(-1, keepdims=True))


def split_tokens(data, split):
    """All tokens [N] of a split, and the token before each."""
    items = MMapIndexedDataset(str(data / split))
    tokens = np.concatenate([items[n].numpy() for n in range(len(items))])
    eos = Dictionary.load(str(data / "dict.txt")).eos()
    return tokens, np.concatenate([[eos], tokens[:-1]])


def reader_loss(data, path, rows, limit=None, mask_of=None):
    """Mean bits per token of the test split, and its number of tokens, by the independent reader.

    It reads each of ``rows`` contiguous rows at once.
    """
    tokens, previous = split_tokens(data, "test")
    total = 0.0
    for row in range(rows):
        part = slice(len(tokens) * row // rows, len(tokens) * (row + 1) // rows)
        logprobs = reader_logprobs(path, previous[part], limit, mask_of)
        total -= logprobs[np.arange(len(logprobs)), tokens[part]].sum()
    return total / len(tokens) / math.log(2), len(tokens)
