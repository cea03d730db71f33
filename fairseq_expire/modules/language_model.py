"""A language model with a memory: tokens in, predictions of the next ones, or of a label for each, out.

Size legend: B rows, T tokens of a block, D width, V symbols that are predicted.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_expire.modules.adaptive_vocabulary import AdaptiveInput, AdaptiveSoftmax
from fairseq_expire.modules.config import LanguageModelConfig
from fairseq_expire.modules.layer import LayerReport
from fairseq_expire.modules.linear import Linear
from fairseq_expire.modules.memory import Memory
from fairseq_expire.modules.transformer import MemoryTransformer, StackOutput


class Prediction(NamedTuple):
    """The predictions of a block.

    Args:
        log_probs: [B, T, V] of each next token.
        memory: the memory to read on from.
        reports: one for each layer.
    """

    log_probs: Tensor
    memory: Memory
    reports: tuple[LayerReport, ...]


class LanguageModel(nn.Module):
    """A language model: embedding, layers with a memory, output layer.

    Args:
        config: sizes, memory policy, vocabulary, dropout.
        dictionary_digest: digest of the dictionary that the model is trained with (see ``tokenizers``), kept for later
            checks.
    Raises:
        ValueError: if the values of ``config`` do not fit each other.
    """

    def __init__(self, config: LanguageModelConfig, dictionary_digest: str):
        super().__init__()
        self.config = config
        stack = MemoryTransformer(
            embed_dim=config.embed_dim,
            num_heads=config.num_heads,
            ffn_dim=config.ffn_dim,
            num_layers=config.num_layers,
            position_range=config.position_range,
            policy=config.policy,
            pre_norm=config.pre_norm,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
            activation_dropout=config.activation_dropout,
            checkpoint_activations=config.checkpoint_activations,
        )
        _initialise(stack)
        self.embed_tokens = _embedding(config)
        self.embed_scale = config.embed_dim**0.5 if config.scale_embedding else 1.0
        self.stack = stack
        self.dropout_in = nn.Dropout(config.dropout_in)
        self.dropout_out = nn.Dropout(config.dropout_out)
        # A model has one of the two.
        self.output_projection: Linear | None = None
        self.adaptive_softmax: AdaptiveSoftmax | None = None
        if config.adaptive_softmax is None:
            self.output_projection = _projection(config, self.embed_tokens)
        else:
            self.adaptive_softmax = _adaptive_softmax(config, self.embed_tokens)
        # Not a buffer: code that averages the weights of a state dict expects floating-point numbers.
        self.dictionary_digest = dictionary_digest

    def forward(self, tokens: Tensor, memory: Memory | None = None) -> Prediction:
        """Reads a block of tokens and predicts the token after each.

        Args:
            tokens: [B, T] int64; padding stands at the end of a row.
            memory: the memory to read on from; None at the start of a text.
        """
        out = self.read(tokens, memory)
        return Prediction(self.log_probs(out.hidden), out.memory, out.reports)

    def read(self, tokens: Tensor, memory: Memory | None = None) -> StackOutput:
        """Reads a block of tokens without predicting: ``hidden`` of the result is what the output layer predicts from.

        Args:
            tokens: [B, T] int64; padding stands at the end of a row.
            memory: the memory to read on from; None at the start of a text.
        """
        hidden = self.dropout_in(self.embed_scale * self.embed_tokens(tokens))
        start = self.config.document_start
        out: StackOutput = self.stack(
            hidden, memory, padding=tokens.eq(self.config.pad), starts=None if start is None else tokens.eq(start)
        )
        return out._replace(hidden=self.dropout_out(out.hidden))

    def output_layer(self, features: Tensor) -> Tensor:
        """Maps features [B, T, D] to scores [B, T, V]; with an adaptive softmax, returns the features themselves."""
        if self.output_projection is None:
            return features
        scores: Tensor = self.output_projection(features)
        return scores

    def log_probs(self, features: Tensor) -> Tensor:
        """Maps features [B, T, D] to the log-probabilities [B, T, V] of all next tokens, in float32 or better."""
        if self.adaptive_softmax is not None:
            return self.adaptive_softmax.get_log_prob(features)
        scores = self.output_layer(features)
        return F.log_softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))

    def target_log_probs(self, features: Tensor, target: Tensor) -> Tensor:
        """Returns the log-probabilities [B, T] of the targets alone, in float32 or better.

        Args:
            features: [B, T, D].
            target: [B, T] int64.
        """
        if self.adaptive_softmax is not None:
            log_probs = self.adaptive_softmax.get_log_prob(features, target)
        else:
            log_probs = self.log_probs(features)
        return log_probs.gather(2, target.unsqueeze(-1)).squeeze(-1)


def _initialise(stack: MemoryTransformer) -> None:
    """Draws Glorot-uniform matrices and zeroes biases, as fairseq's transformer does; policies keep their own start."""
    for layer in stack.layers:
        for module in (layer.query_proj, layer.key_proj, layer.value_proj, layer.out_proj, layer.fc1, layer.fc2):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _embedding(config: LanguageModelConfig) -> nn.Embedding | AdaptiveInput:
    """Makes the module [B, T] int64 -> [B, T, D] that gives zeros for padding."""
    if config.adaptive_input is not None:
        return AdaptiveInput(
            vocab_size=config.vocab_size, pad=config.pad, embed_dim=config.embed_dim, clusters=config.adaptive_input
        )
    embedding = nn.Embedding(config.vocab_size, config.embed_dim, padding_idx=config.pad)
    nn.init.normal_(embedding.weight, std=config.embed_dim**-0.5)
    nn.init.zeros_(embedding.weight[config.pad])
    return embedding


def _projection(config: LanguageModelConfig, embed_tokens: nn.Embedding | AdaptiveInput) -> Linear:
    projection = Linear(config.embed_dim, config.output_size, bias=False)
    if config.share_embedding:
        # The configuration allows this only with a plain embedding.
        assert isinstance(embed_tokens, nn.Embedding)
        projection.weight = embed_tokens.weight
    else:
        nn.init.normal_(projection.weight, std=config.embed_dim**-0.5)
    return projection


def _adaptive_softmax(config: LanguageModelConfig, embed_tokens: nn.Embedding | AdaptiveInput) -> AdaptiveSoftmax:
    assert config.adaptive_softmax is not None
    tied = None
    if config.tie_adaptive_weights:
        assert isinstance(embed_tokens, AdaptiveInput)
        tied = embed_tokens
    return AdaptiveSoftmax(
        vocab_size=config.output_size,
        embed_dim=config.embed_dim,
        clusters=config.adaptive_softmax,
        dropout=config.adaptive_softmax_dropout,
        tied=tied,
        tie_projections=config.tie_adaptive_proj,
    )
