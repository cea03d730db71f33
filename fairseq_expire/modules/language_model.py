"""A language model with a memory: tokens in, predictions of the next ones out.

Size legend: B rows, T tokens of a block, D width, V symbols.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_expire.modules.adaptive_vocabulary import AdaptiveInput, AdaptiveSoftmax
from fairseq_expire.modules.config import LanguageModelConfig
from fairseq_expire.modules.linear import Linear
from fairseq_expire.modules.memory import Memory
from fairseq_expire.modules.report import LayerReport
from fairseq_expire.modules.transformer import MemoryTransformer, StackOutput


class Prediction(NamedTuple):
    """Of a block: log-probabilities [B, T, V] of each next token, the memory to read on from, a report for each layer."""

    log_probs: Tensor
    memory: Memory
    reports: tuple[LayerReport, ...]


class TokenReader:
    """The parts of a language model and how they go together, for an ``nn.Module`` to be made of: :class:`LanguageModel`, and
    the decoder of the fairseq models."""

    def add_parts(self, description: LanguageModelConfig, digest: str) -> None:
        """Builds the parts with new weights.

        Args:
            description: of the model.
            digest: of the dictionary, see :func:`dictionary_digest`.
        Raises:
            ValueError: if the description's values do not fit each other.
        """
        this = self.description = description
        stack = MemoryTransformer(
            embed_dim=this.embed_dim,
            num_heads=this.num_heads,
            ffn_dim=this.ffn_dim,
            num_layers=this.num_layers,
            position_range=this.position_range,
            policy=this.policy,
            pre_norm=this.pre_norm,
            dropout=this.dropout,
            attention_dropout=this.attention_dropout,
            activation_dropout=this.activation_dropout,
            checkpoint_activations=this.checkpoint_activations,
        )
        _initialise(stack)
        self.embed_tokens = _embedding(this)
        self.embed_scale = this.embed_dim**0.5 if this.scale_embedding else 1.0
        self.stack = stack
        self.dropout_in = nn.Dropout(this.dropout_in)
        self.dropout_out = nn.Dropout(this.dropout_out)
        # One of the two.
        self.output_projection = _projection(this, self.embed_tokens) if this.adaptive_softmax is None else None
        self.adaptive_softmax = None if this.adaptive_softmax is None else _adaptive_softmax(this, self.embed_tokens)
        # Not a buffer: what averages weights, or keeps a moving average of them, takes all of a state dict for numbers.
        self.dictionary_digest = digest

    def read(self, tokens: Tensor, memory: Memory | None = None) -> StackOutput:
        """The features [B, T, D] that the output layer predicts from, the new memory and the layers' reports.

        Args:
            tokens: [B, T] int64; padding stands at the end of a row.
            memory: the memory to read on from; None at the start of a text.
        """
        hidden = self.dropout_in(self.embed_scale * self.embed_tokens(tokens))
        out = self.stack(hidden, memory, padding=tokens.eq(self.description.pad))
        return out._replace(hidden=self.dropout_out(out.hidden))

    def output_layer(self, features: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, V] scores; the features themselves where there is an adaptive softmax."""
        return features if self.output_projection is None else self.output_projection(features)


class LanguageModel(TokenReader, nn.Module):
    """A language model in plain PyTorch.

    Args:
        description: what it is made of.
        digest: of the dictionary, see :func:`dictionary_digest`.
    Raises:
        ValueError: if the description's values do not fit each other.
    """

    def __init__(self, description: LanguageModelConfig, digest: str):
        super().__init__()
        self.add_parts(description, digest)

    def forward(self, tokens: Tensor, memory: Memory | None = None) -> Prediction:
        """Reads a block [B, T] int64 and predicts what follows each token."""
        out = self.read(tokens, memory)
        return Prediction(self.log_probs(out.hidden), out.memory, out.reports)

    def target_log_probs(self, features: Tensor, target: Tensor) -> Tensor:
        """[B, T, D] and [B, T] int64 -> [B, T], of the targets alone, in float32 or better."""
        if self.adaptive_softmax is not None:
            log_probs = self.adaptive_softmax.get_log_prob(features, target)
        else:
            log_probs = self.log_probs(features)
        return log_probs.gather(2, target.unsqueeze(-1)).squeeze(-1)

    def log_probs(self, features: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, V], in float32 or better."""
        if self.adaptive_softmax is not None:
            return self.adaptive_softmax.get_log_prob(features)
        scores = self.output_projection(features)
        return F.log_softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))


def dictionary_digest(symbols: Sequence[str]) -> str:
    """SHA-256 of the symbols in order, in hexadecimal: by it a dictionary is known from others of the same size."""
    return hashlib.sha256("\n".join(symbols).encode("utf-8")).hexdigest()


def _initialise(stack: MemoryTransformer) -> None:
    """Glorot-uniform matrices and zero biases, as fairseq's transformer; span predictors keep their own start."""
    for layer in stack.layers:
        for module in (layer.query_proj, layer.key_proj, layer.value_proj, layer.out_proj, layer.fc1, layer.fc2):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _embedding(this: LanguageModelConfig) -> nn.Module:
    """[B, T] int64 -> [B, T, D], zeros for padding."""
    if this.adaptive_input is not None:
        return AdaptiveInput(symbols=this.symbols, pad=this.pad, embed_dim=this.embed_dim, bands=this.adaptive_input)
    embedding = nn.Embedding(this.symbols, this.embed_dim, padding_idx=this.pad)
    nn.init.normal_(embedding.weight, std=this.embed_dim**-0.5)
    nn.init.zeros_(embedding.weight[this.pad])
    return embedding


def _projection(this: LanguageModelConfig, embed_tokens: nn.Module) -> Linear:
    projection = Linear(this.embed_dim, this.symbols, bias=False)
    if this.share_embedding:
        projection.weight = embed_tokens.weight
    else:
        nn.init.normal_(projection.weight, std=this.embed_dim**-0.5)
    return projection


def _adaptive_softmax(this: LanguageModelConfig, embed_tokens: nn.Module) -> AdaptiveSoftmax:
    return AdaptiveSoftmax(
        symbols=this.symbols,
        embed_dim=this.embed_dim,
        bands=this.adaptive_softmax,
        dropout=this.adaptive_softmax_dropout,
        tied=embed_tokens if this.tie_adaptive_weights else None,
        tie_projections=this.tie_adaptive_proj,
    )
