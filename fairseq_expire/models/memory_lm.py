"""The shared part of all architectures: options, and the model behind fairseq's interface."""

import argparse
import os
import sys
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, NamedTuple, Optional, Tuple, Union

import torch
from fairseq import file_utils, hub_utils
from fairseq.data import Dictionary
from fairseq.dataclass import FairseqDataclass
from fairseq.models import FairseqIncrementalDecoder, FairseqLanguageModel
from omegaconf import II
from torch import Tensor

from fairseq_expire.fairseq_patches.overrides import check_overrides
from fairseq_expire.fairseq_patches.trained_options import SPANS, TRAINED
from fairseq_expire.models.every_gradient import with_every_gradient
from fairseq_expire.models.hub import MemoryHubInterface
from fairseq_expire.models.option_checks import (
    check_budget,
    check_sharing,
    check_size,
    input_clusters,
    softmax_clusters,
)
from fairseq_expire.modules import AdaptiveSoftmax, LanguageModel, LanguageModelConfig, Memory, MemoryPolicy
from fairseq_expire.modules.config import check_weight_names
from fairseq_expire.streaming.memory_pass import MemoryHandle
from fairseq_expire.tokenizers.dictionary import dictionary_digest


def _help(text: str) -> Dict[str, str]:
    return {"help": text}


def _trained(text: str) -> Dict[str, Any]:
    """Returns the metadata of an option that is part of the trained model; see ``fairseq_patches.trained_options``."""
    return {"help": text, TRAINED: True}


@dataclass
class MemoryLMConfig(FairseqDataclass):
    """The options of all architectures, under fairseq's names where it has them."""

    decoder_layers: int = field(default=12, metadata=_trained("number of layers"))
    decoder_embed_dim: int = field(default=512, metadata=_trained("width of the hidden states (D)"))
    decoder_ffn_embed_dim: int = field(default=2048, metadata=_trained("width inside the feed-forward networks"))
    decoder_attention_heads: int = field(default=8, metadata=_trained("number of attention heads (K)"))
    decoder_normalize_before: bool = field(
        default=False, metadata=_trained("layer norm before each sublayer (and after the last) instead of after it")
    )
    dropout: float = field(default=0.1, metadata=_help("dropout on the embedding and on each sublayer's output"))
    decoder_dropout_in: Optional[float] = field(
        default=None, metadata=_help("dropout on the embedding; default: --dropout")
    )
    decoder_dropout_out: float = field(default=0.0, metadata=_help("dropout on the output of the last layer"))
    attention_dropout: float = field(default=0.0, metadata=_help("dropout on attention probabilities"))
    activation_dropout: float = field(default=0.0, metadata=_help("dropout after the activation in the FFN"))
    max_span: int = field(default=16384, metadata={"help": "longest span of a memory, in steps (L)", TRAINED: SPANS})
    span_limit: Optional[int] = field(
        default=None,
        metadata=_help(
            "cut every span to at most this many steps when scoring (spans are still predicted with L = --max-span)"
        ),
    )
    memory_budget: Optional[int] = field(
        default=None,
        metadata=_help(
            "most memories of a layer that a query sees, in training and scoring: the youngest quarter, and those that "
            "expire last (N); not for compressive_transformer_lm"
        ),
    )
    position_range: Optional[int] = field(
        default=None,
        metadata=_trained(
            "how many steps back attention knows the distance of a memory (P); default: --tokens-per-sample; "
            "--max-span for transformer_xl_lm and adaptive_span_lm; --max-span + --compressed-size for "
            "compressive_transformer_lm"
        ),
    )
    share_decoder_input_output_embed: bool = field(
        default=False, metadata=_trained("share input and output embeddings")
    )
    no_scale_embedding: bool = field(default=False, metadata=_trained("do not scale embeddings by sqrt(D)"))
    adaptive_input: bool = field(default=False, metadata=_trained("use adaptive input (large vocabularies)"))
    adaptive_input_factor: float = field(
        default=4, metadata=_trained("each further cluster of words is narrower by this factor")
    )
    adaptive_input_cutoff: Optional[str] = field(
        default=None, metadata=_trained("comma separated list of adaptive input cutoff points")
    )
    adaptive_softmax_cutoff: Optional[str] = field(
        default=None, metadata=_trained("comma separated list of adaptive softmax cutoff points; none: a full softmax")
    )
    adaptive_softmax_dropout: float = field(default=0, metadata=_help("dropout in the tail projections"))
    adaptive_softmax_factor: float = field(
        default=4, metadata=_trained("each further cluster of words is narrower by this factor")
    )
    tie_adaptive_weights: bool = field(
        default=False, metadata=_trained("tie the word weights of adaptive softmax and adaptive input")
    )
    tie_adaptive_proj: bool = field(
        default=False, metadata=_trained("tie the projections of adaptive softmax and adaptive input")
    )
    checkpoint_activations: bool = field(
        default=False, metadata=_help("keep nothing inside a layer for backward: less memory, more time")
    )
    # Not for users: training stores here which dictionary the model was trained with.
    dictionary_digest: Optional[str] = field(default=None, metadata=_help(argparse.SUPPRESS))
    # The dictionary of the labels, of a model that predicts them.
    label_dictionary_digest: Optional[str] = field(default=None, metadata=_help(argparse.SUPPRESS))
    # And here how to build the model without fairseq, as JSON; None if only the code of its policy can.
    model_config: Optional[str] = field(default=None, metadata=_help(argparse.SUPPRESS))
    tokens_per_sample: int = II("task.tokens_per_sample")
    # As the task's option of that name says. A checkpoint stores it, and its model reads with borders from then on.
    break_memory_at_eos: bool = field(default=II("task.break_memory_at_eos"), metadata={TRAINED: SPANS})


class IncrementalMemory(NamedTuple):
    """The memory in an incremental state, None at the start, and how many tokens of each row it has read."""

    memory: Optional[Memory]
    done: int


class MemoryLMDecoder(FairseqIncrementalDecoder):
    """A language model with a memory, as fairseq calls it: tokens and a memory in, scores of the next tokens and a
    memory out.

    Args:
        dictionary: the dictionary of the tokens that are read and predicted.
        config: the configuration of the model.
    Raises:
        ValueError: if the values of ``config`` do not fit each other.
    """

    def __init__(self, dictionary: Dictionary, config: LanguageModelConfig):
        super().__init__(dictionary)
        self.model = LanguageModel(config, dictionary_digest(dictionary.symbols))

    @property
    def adaptive_softmax(self) -> Optional[AdaptiveSoftmax]:
        """The adaptive softmax, where fairseq's criterions and scorers look for it; None with a full softmax."""
        return self.model.adaptive_softmax

    @adaptive_softmax.setter
    def adaptive_softmax(self, value: None) -> None:
        # fairseq's constructor sets this attribute to None.
        pass

    def output_layer(self, features: Tensor) -> Tensor:
        """Maps features [B, T, D] to scores [B, T, V]; with an adaptive softmax, returns the features themselves."""
        return self.model.output_layer(features)

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Optional[Tensor] = None,
        memory: Union[Memory, MemoryHandle, None] = None,
        positions: Optional[Tensor] = None,
        incremental_state: Optional[Dict] = None,
        encoder_out: None = None,
    ) -> Tuple[Tensor, Dict]:
        """Reads a block of tokens.

        Args:
            src_tokens: [B, T] int64; padding stands at the end of a row.
            src_lengths: not needed; fairseq's batches have it.
            memory: the memory to read on from; or the handle of a batch to it, through which the new memory is stored.
            positions: [B, N] int64, the places in the block that are predicted from; None for all.
            incremental_state: where generation stores the memory from call to call, with the number of ``src_tokens``
                that it has read: only the tokens after these are read. See :meth:`start_from`.
            encoder_out: None; fairseq's generator passes it.
        Returns:
            scores [B, N, V] (features [B, N, D] with an adaptive softmax) at N places, and a dict
            with the new ``memory`` and the ``reports`` of the layers. N is T without positions and incremental state.
        Raises:
            ValueError: if an incremental state has read all of ``src_tokens`` before, or comes with a memory.
        """
        features, extra = self.extract_features(
            src_tokens, memory=memory, positions=positions, incremental_state=incremental_state
        )
        return self.output_layer(features), extra

    def extract_features(
        self,
        src_tokens: Tensor,
        src_lengths: Optional[Tensor] = None,
        memory: Union[Memory, MemoryHandle, None] = None,
        positions: Optional[Tensor] = None,
        incremental_state: Optional[Dict] = None,
        encoder_out: None = None,
    ) -> Tuple[Tensor, Dict]:
        """Reads a block as :meth:`forward` does, and returns the features [B, N, D] that the output layer gets."""
        if incremental_state is not None:
            if memory is not None:
                raise ValueError("an incremental state keeps a memory of its own: start it with start_from")
            memory, done = self.memory_in(incremental_state)
            if src_tokens.size(1) <= done:
                raise ValueError(
                    f"nothing to read: {done} tokens of each row have been read, and {src_tokens.size(1)} are given"
                )
            out = self.model.read(src_tokens[:, done:], memory)
            self.start_from(incremental_state, out.memory, src_tokens.size(1))
        elif isinstance(memory, MemoryHandle):
            before = memory.load(self.model)
            out = self.model.read(src_tokens, before)
            memory.store(self.model, before, out.memory)
        else:
            out = self.model.read(src_tokens, memory)
        features = out.hidden
        if positions is not None:
            features = features.gather(1, positions.unsqueeze(-1).expand(-1, -1, features.size(-1)))
        if self.adaptive_softmax is not None and torch.is_grad_enabled():
            features = with_every_gradient(features, self.adaptive_softmax)
        # fairseq's generator asks for attention probabilities, which are not available.
        return features, {"memory": out.memory, "reports": out.reports, "attn": None}

    def start_from(self, incremental_state: Dict, memory: Memory, done: int) -> None:
        """Makes the next call with this incremental state read on from a memory.

        Args:
            incremental_state: a dict, as fairseq's generator passes to every call.
            memory: a memory of B rows.
            done: how many tokens at the start of the next call's ``src_tokens`` [B, T] the memory has read already; 0
                if those begin where the memory ends.
        """
        self.set_incremental_state(incremental_state, "stream", {"memory": memory, "done": done})

    def memory_in(self, incremental_state: Dict) -> IncrementalMemory:
        """Returns the memory in an incremental state and how many tokens it has read."""
        state = self.get_incremental_state(incremental_state, "stream")
        return IncrementalMemory(None, 0) if state is None else IncrementalMemory(**state)

    def reorder_incremental_state(self, incremental_state: Dict, new_order: Tensor) -> None:
        """Picks rows, and repeats them, as a beam search goes on.

        Args:
            incremental_state: the dict that the generator passes to every call.
            new_order: [B'] int64, the row that each new row continues.
        """
        memory, done = self.memory_in(incremental_state)
        if memory is not None:
            self.start_from(incremental_state, memory.reorder(new_order), done)

    def max_positions(self) -> Optional[int]:
        """Returns None: a stream may have any length."""
        return None

    def upgrade_state_dict_named(self, state_dict, name):
        """Checks that weights fit the model, before torch lists tensor shapes.

        Raises:
            ValueError: if the weights are of an earlier version, of other options, or of another model.
        """
        check_weight_names(state_dict, model="the checkpoint")
        positions = state_dict.get(f"{name}.model.stack.position")
        position_range = self.model.config.position_range
        if positions is not None and positions.size(0) != position_range:
            raise ValueError(
                f"the checkpoint has positions for {positions.size(0)} steps, --position-range (or its default, see "
                f"--help) asks for {position_range}: the range is part of the trained model; "
                f"give --position-range {positions.size(0)}"
            )
        weights = self.state_dict()
        for weight, own in weights.items():
            theirs = state_dict.get(f"{name}.{weight}")
            if theirs is None or theirs.shape != own.shape:
                found = "none" if theirs is None else list(theirs.shape)
                raise ValueError(
                    f"the checkpoint is not of this model, which has a weight {weight} of shape {list(own.shape)} "
                    f"where the checkpoint has {found}: give the options that it was trained with, or another "
                    "checkpoint"
                )
        more = [weight for weight in state_dict if weight.removeprefix(f"{name}.") not in weights]
        if more:
            raise ValueError(
                f"the checkpoint is not of this model: it has a weight {more[0].removeprefix(f'{name}.')}, which the "
                "model lacks; give the options that it was trained with, or another checkpoint"
            )
        return state_dict


class MemoryLanguageModel(FairseqLanguageModel):
    """A language model with a memory. An architecture is a subclass with a policy: see :meth:`make_policy`."""

    def get_normalized_probs(self, net_output, log_probs: bool, sample: Optional[Dict] = None) -> Tensor:
        """Returns [B, N, V] as fairseq does. A batch of a scoring run has a sum, to which its targets' are added."""
        probs = super().get_normalized_probs(net_output, log_probs, sample)
        if sample is not None and "score_sum" in sample:
            sample["score_sum"].add(probs, sample, log_probs=log_probs)
        return probs

    def max_decoder_positions(self) -> int:
        """Returns the largest number: there is no limit, and fairseq's generator compares numbers."""
        return sys.maxsize

    @classmethod
    def from_pretrained(
        cls, model_name_or_path, checkpoint_file="model.pt", data_name_or_path=".", **overrides
    ) -> MemoryHubInterface:
        """Loads a model as fairseq's own models do.

        Args:
            model_name_or_path: the folder of the checkpoint.
            checkpoint_file: its name in the folder; several, separated by ':', are averaged.
            data_name_or_path: the folder of its data, for the dictionary. If it starts with '.', it is relative to the
                folder of the checkpoint.
            overrides: options in place of those in the checkpoint.
        Raises:
            ValueError: the checkpoint has no option of such a name.
        """
        # Two of these are no options: fairseq takes them out itself.
        given = {name: value for name, value in overrides.items() if name not in ("archive_map", "generation_args")}
        if "archive_map" not in overrides:
            folder = file_utils.load_archive_file(model_name_or_path)
            check_overrides([os.path.join(folder, name) for name in checkpoint_file.split(os.pathsep)], given)
        loaded = hub_utils.from_pretrained(model_name_or_path, checkpoint_file, data_name_or_path, **overrides)
        return MemoryHubInterface(loaded["args"], loaded["task"], loaded["models"])

    @classmethod
    def make_policy(cls, cfg: MemoryLMConfig) -> Callable[[], MemoryPolicy]:
        """Returns a function that makes the memory policy of a layer.

        A model can be exported if this is a ``functools.partial`` of one of ``fairseq_expire.modules.config.POLICIES``.

        Args:
            cfg: the options of the architecture.
        """
        raise NotImplementedError

    @classmethod
    def default_position_range(cls, cfg: MemoryLMConfig) -> int:
        """Returns P, the position range, if ``--position-range`` is not given."""
        return cfg.tokens_per_sample

    @classmethod
    def make_config(
        cls, cfg: MemoryLMConfig, dictionary: Dictionary, labels: Optional[Dictionary] = None
    ) -> LanguageModelConfig:
        """Returns the options as a :class:`LanguageModelConfig`.

        Args:
            cfg: the options.
            dictionary: of the inputs.
            labels: of the labels that are predicted; None to predict the next input.
        Raises:
            ValueError: options do not fit each other; the message has their values.
        """
        if labels is not None:
            check_sharing(cfg)
        position_range = cfg.position_range
        if position_range is None:
            position_range = cls.default_position_range(cfg)
        dropout_in = cfg.dropout if cfg.decoder_dropout_in is None else cfg.decoder_dropout_in
        shares = {
            "dropout": cfg.dropout,
            "decoder_dropout_in": dropout_in,
            "decoder_dropout_out": cfg.decoder_dropout_out,
            "adaptive_softmax_dropout": cfg.adaptive_softmax_dropout,
        }
        for name, value in shares.items():
            if not 0 <= value < 1:
                raise ValueError(f"{name} is a share: expected 0 <= {name} < 1, got {value}")
        config = LanguageModelConfig(
            vocab_size=len(dictionary),
            pad=dictionary.pad(),
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
            dropout_in=dropout_in,
            dropout_out=cfg.decoder_dropout_out,
            scale_embedding=not cfg.no_scale_embedding,
            share_embedding=cfg.share_decoder_input_output_embed,
            adaptive_input=input_clusters(cfg, len(dictionary)),
            adaptive_softmax=softmax_clusters(cfg, len(labels or dictionary)),
            adaptive_softmax_dropout=cfg.adaptive_softmax_dropout,
            tie_adaptive_weights=cfg.tie_adaptive_weights,
            tie_adaptive_proj=cfg.tie_adaptive_proj,
            checkpoint_activations=cfg.checkpoint_activations,
            num_labels=len(labels) if labels else None,
            document_start=dictionary.eos() if cfg.break_memory_at_eos else None,
        )
        check_budget(config, cfg.memory_budget)
        return config

    @classmethod
    def build_model(cls, cfg: MemoryLMConfig, task) -> "MemoryLanguageModel":
        """Builds the model.

        Raises:
            ValueError: options do not fit each other, or not this task; the message has their values.
        """
        if not hasattr(task, "level"):
            raise ValueError(
                f"{cls.__name__} reads with the memories of --task memory_caching_lm and memory_caching_tagging, which "
                f"{type(task).__name__} does not keep: name one of them"
            )
        config = cls.make_config(cfg, task.source_dictionary, task.label_dictionary)
        check_size(config)
        return cls(MemoryLMDecoder(task.source_dictionary, config))
