"""What every language model with a memory shares: options, embedding, stack, output, and the memory handle."""

from dataclasses import dataclass, field
from typing import Callable, Dict, Optional, Tuple, Union

import torch
from fairseq.data import Dictionary
from fairseq.dataclass import FairseqDataclass
from fairseq.models import FairseqDecoder, FairseqLanguageModel
from fairseq.modules import AdaptiveSoftmax
from omegaconf import II
from torch import Tensor, nn

from fairseq_expire.data.memory_pass import MemoryHandle
from fairseq_expire.modules import Memory, MemoryPolicy, MemoryTransformer

from .vocabulary import build_embedding, build_output, dictionary_digest


def _help(text: str) -> Dict[str, str]:
    return {"help": text}


@dataclass
class MemoryLMConfig(FairseqDataclass):
    """Options that all memory policies share, under fairseq's names where it has them."""

    decoder_layers: int = field(default=12, metadata=_help("number of layers"))
    decoder_embed_dim: int = field(default=512, metadata=_help("width of the hidden states (D)"))
    decoder_ffn_embed_dim: int = field(default=2048, metadata=_help("width inside the feed-forward networks"))
    decoder_attention_heads: int = field(default=8, metadata=_help("number of attention heads (K)"))
    decoder_normalize_before: bool = field(
        default=False, metadata=_help("layer norm before each sublayer (and after the last) instead of after it")
    )
    dropout: float = field(default=0.1, metadata=_help("dropout on the embedding and on each sublayer's output"))
    decoder_dropout_in: Optional[float] = field(
        default=None, metadata=_help("dropout on the embedding; default: --dropout")
    )
    decoder_dropout_out: float = field(default=0.0, metadata=_help("dropout on the output of the last layer"))
    attention_dropout: float = field(default=0.0, metadata=_help("dropout on attention probabilities"))
    activation_dropout: float = field(default=0.0, metadata=_help("dropout after the activation in the FFN"))
    max_span: int = field(default=16384, metadata=_help("longest span of a memory, in steps (L)"))
    span_limit: Optional[int] = field(
        default=None, metadata=_help("cut every span to at most this many steps when scoring (L itself scales them)")
    )
    position_range: Optional[int] = field(
        default=None,
        metadata=_help(
            "how many steps back attention knows the distance of a memory (P); default: --tokens-per-sample, for "
            "transformer_xl_lm and adaptive_span_lm --max-span, for compressive_transformer_lm --compressed-size more"
        ),
    )
    share_decoder_input_output_embed: bool = field(
        default=False, metadata=_help("share input and output embeddings")
    )
    no_scale_embedding: bool = field(default=False, metadata=_help("do not scale embeddings by sqrt(D)"))
    adaptive_input: bool = field(default=False, metadata=_help("use adaptive input (large vocabularies)"))
    adaptive_input_factor: float = field(default=4, metadata=_help("each further band of words is narrower by this"))
    adaptive_input_cutoff: Optional[str] = field(
        default=None, metadata=_help("comma separated list of adaptive input cutoff points")
    )
    adaptive_softmax_cutoff: Optional[str] = field(
        default=None, metadata=_help("comma separated list of adaptive softmax cutoff points; none: a full softmax")
    )
    adaptive_softmax_dropout: float = field(default=0, metadata=_help("dropout in the tail projections"))
    adaptive_softmax_factor: float = field(default=4, metadata=_help("each further band of words is narrower by this"))
    tie_adaptive_weights: bool = field(
        default=False, metadata=_help("tie the word weights of adaptive softmax and adaptive input")
    )
    tie_adaptive_proj: bool = field(
        default=False, metadata=_help("tie the projections of adaptive softmax and adaptive input")
    )
    checkpoint_activations: bool = field(
        default=False, metadata=_help("keep nothing inside a layer for backward: less memory, more time")
    )
    tokens_per_sample: int = II("task.tokens_per_sample")


class MemoryLMDecoder(FairseqDecoder):
    """Tokens and a memory in, scores of the next tokens and the new memory out.

    Args:
        dictionary: of the tokens read and predicted.
        embed_tokens: [B, T] int64 -> [B, T, D].
        embed_scale: multiplies the embedding.
        stack: the layers.
        dropout_in: dropout on the embedding.
        dropout_out: dropout on the output of the last layer.
        output_projection: D -> vocabulary, or None if there is an adaptive softmax.
        adaptive_softmax: for large vocabularies.
    Raises:
        ValueError: if a dropout is outside [0, 1).
    """

    def __init__(
        self,
        dictionary: Dictionary,
        *,
        embed_tokens: nn.Module,
        embed_scale: float,
        stack: MemoryTransformer,
        dropout_in: float,
        dropout_out: float,
        output_projection: Optional[nn.Module],
        adaptive_softmax: Optional[AdaptiveSoftmax],
    ):
        super().__init__(dictionary)
        for name, value in dict(decoder_dropout_in=dropout_in, decoder_dropout_out=dropout_out).items():
            if not 0 <= value < 1:
                raise ValueError(f"{name} is a share: expected 0 <= {name} < 1, got {value}")
        self.embed_tokens = embed_tokens
        self.embed_scale = embed_scale
        self.stack = stack
        self.dropout_in = nn.Dropout(dropout_in)
        self.dropout_out = nn.Dropout(dropout_out)
        self.output_projection = output_projection
        self.adaptive_softmax = adaptive_softmax
        # Saved with the weights, so that a checkpoint is never read with another dictionary of the same size.
        self.register_buffer("dictionary_digest", dictionary_digest(dictionary))

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Optional[Tensor] = None,
        memory: Union[None, Memory, MemoryHandle] = None,
    ) -> Tuple[Tensor, Dict]:
        """
        Args:
            src_tokens: [B, T] int64; padding stands at the end of a row.
            src_lengths: not needed; fairseq's batches have it.
            memory: the memory to read on from; or the handle of a batch to it, through which the new one is kept.
        Returns:
            [B, T, V] scores (features [B, T, D] with an adaptive softmax), and a dict with the new ``memory`` and the
            layers' ``reports``.
        """
        features, extra = self.extract_features(src_tokens, memory=memory)
        return self.output_layer(features), extra

    def extract_features(
        self,
        src_tokens: Tensor,
        src_lengths: Optional[Tensor] = None,
        memory: Union[None, Memory, MemoryHandle] = None,
    ) -> Tuple[Tensor, Dict]:
        """As :meth:`forward`, before the output layer: [B, T, D]."""
        held = memory.load(self) if isinstance(memory, MemoryHandle) else memory
        hidden = self.dropout_in(self.embed_scale * self.embed_tokens(src_tokens))
        out = self.stack(hidden, held, padding=src_tokens.eq(self.dictionary.pad()))
        if isinstance(memory, MemoryHandle):
            memory.store(self, held, out.memory)
        return self.dropout_out(out.hidden), {"memory": out.memory, "reports": out.reports}

    def output_layer(self, features: Tensor) -> Tensor:
        return features if self.output_projection is None else self.output_projection(features)

    def max_positions(self) -> Optional[int]:
        """None: a stream has no longest length."""
        return None

    def upgrade_state_dict_named(self, state_dict, name):
        """Says what does not fit before torch lists tensor shapes. Raises ValueError."""
        stored = state_dict.get(f"{name}.dictionary_digest")
        if stored is not None and not torch.equal(stored.cpu(), self.dictionary_digest.cpu()):
            raise ValueError(
                f"the checkpoint was trained with another dictionary than the data's dict.txt ({len(self.dictionary)} "
                "symbols): prepare the text with the checkpoint's own dict.txt"
            )
        position = state_dict.get(f"{name}.stack.position")
        if position is not None and position.size(0) != self.stack.position_range:
            raise ValueError(
                f"the checkpoint has positions for {position.size(0)} steps, --position-range (or its default, see --help) "
                f"asks for {self.stack.position_range}: the range is part of the trained model; "
                f"give --position-range {position.size(0)}"
            )
        return state_dict


class MemoryLanguageModel(FairseqLanguageModel):
    """A registered architecture is this with a policy: see ``make_policy``."""

    def get_normalized_probs(self, net_output, log_probs: bool, sample: Optional[Dict] = None) -> Tensor:
        """[B, T, V], as fairseq's; the batches of a scoring run carry a tally, which gets those of the targets."""
        probs = super().get_normalized_probs(net_output, log_probs, sample)
        if sample is not None and "tally" in sample:
            sample["tally"].add(probs, sample["target"], log_probs=log_probs)
        return probs

    @classmethod
    def make_policy(cls, cfg: MemoryLMConfig) -> Callable[[], MemoryPolicy]:
        """What makes the memory policy of a layer, from the options of the architecture."""
        raise NotImplementedError

    @classmethod
    def default_position_range(cls, cfg: MemoryLMConfig) -> int:
        """P where ``--position-range`` isn't given."""
        return cfg.tokens_per_sample

    @classmethod
    def build_model(cls, cfg: MemoryLMConfig, task) -> "MemoryLanguageModel":
        """Builds the model. Raises ValueError, with the option's value, if options do not fit each other."""
        dictionary = task.source_dictionary
        position_range = cfg.position_range
        if position_range is None:
            position_range = cls.default_position_range(cfg)
        stack = MemoryTransformer(
            embed_dim=cfg.decoder_embed_dim,
            num_heads=cfg.decoder_attention_heads,
            ffn_dim=cfg.decoder_ffn_embed_dim,
            num_layers=cfg.decoder_layers,
            position_range=position_range,
            policy=cls.make_policy(cfg),
            pre_norm=cfg.decoder_normalize_before,
            dropout=cfg.dropout,
            attention_dropout=cfg.attention_dropout,
            activation_dropout=cfg.activation_dropout,
            checkpoint_activations=cfg.checkpoint_activations,
        )
        initialise(stack)
        embed_tokens = build_embedding(cfg, dictionary)
        output_projection, adaptive_softmax = build_output(cfg, dictionary, embed_tokens)
        return cls(
            MemoryLMDecoder(
                dictionary,
                embed_tokens=embed_tokens,
                embed_scale=1.0 if cfg.no_scale_embedding else cfg.decoder_embed_dim**0.5,
                stack=stack,
                dropout_in=cfg.dropout if cfg.decoder_dropout_in is None else cfg.decoder_dropout_in,
                dropout_out=cfg.decoder_dropout_out,
                output_projection=output_projection,
                adaptive_softmax=adaptive_softmax,
            )
        )


def initialise(stack: MemoryTransformer) -> None:
    """Glorot-uniform matrices and zero biases, as fairseq's transformer; span predictors keep their own start."""
    for layer in stack.layers:
        for module in (layer.query_proj, layer.key_proj, layer.value_proj, layer.out_proj, layer.fc1, layer.fc2):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
