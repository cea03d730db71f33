"""The configuration of a language model: a value that can be written to a JSON file and read back."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from functools import partial
from typing import Any, get_args

from fairseq_expire.modules.adaptive_vocabulary import Clusters
from fairseq_expire.modules.policies.adaptive_span import AdaptiveSpan
from fairseq_expire.modules.policies.base import MemoryPolicy
from fairseq_expire.modules.policies.compressive import Compressive
from fairseq_expire.modules.policies.expire_span import ExpireSpan
from fairseq_expire.modules.policies.fixed_span import FixedSpan

# The option of a checkpoint's model in which training stores the configuration, as JSON.
MODEL_CONFIG = "model_config"
POLICIES: Mapping[str, type[MemoryPolicy]] = {
    "expire_span": ExpireSpan,
    "fixed_span": FixedSpan,
    "adaptive_span": AdaptiveSpan,
    "compressive": Compressive,
}


@dataclass(frozen=True)
class LanguageModelConfig:
    """The arguments of a :class:`LanguageModel`.

    Args:
        vocab_size: V, the number of symbols in the dictionary.
        pad: index of the padding symbol, which stands for no token.
        embed_dim, num_heads, ffn_dim, num_layers, position_range, pre_norm, dropout, attention_dropout,
            activation_dropout, checkpoint_activations: see :class:`MemoryTransformer`.
        document_start: index of the symbol that begins a document as an input, mostly ``</s>``: from there on, nothing
            before it is seen or remembered. None if documents have no borders.
        num_labels: number of labels, one of which is predicted for each token; None to predict the next token.
        policy: makes the memory policy of a layer. A ``functools.partial`` of one of ``POLICIES`` with keywords can be
            exported.
        dropout_in: dropout on the embedding.
        dropout_out: dropout on the output of the last layer.
        scale_embedding: multiply embeddings by sqrt(D).
        share_embedding: use one matrix for input and output.
        adaptive_input: clusters of an adaptive input embedding; None for a plain embedding.
        adaptive_softmax: clusters of an adaptive softmax; None for a full softmax.
        adaptive_softmax_dropout: dropout in the adaptive softmax.
        tie_adaptive_weights, tie_adaptive_proj: share the word vectors, and the projections, of the two.
    Raises:
        ValueError: if weights are to be shared between modules that do not fit each other; if there is no symbol
            ``document_start``.
    """

    vocab_size: int
    pad: int
    embed_dim: int
    num_heads: int
    ffn_dim: int
    num_layers: int
    position_range: int
    policy: Callable[[], MemoryPolicy]
    pre_norm: bool = False
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    dropout_in: float = 0.0
    dropout_out: float = 0.0
    scale_embedding: bool = True
    share_embedding: bool = False
    adaptive_input: Clusters | None = None
    adaptive_softmax: Clusters | None = None
    adaptive_softmax_dropout: float = 0.0
    tie_adaptive_weights: bool = False
    tie_adaptive_proj: bool = False
    checkpoint_activations: bool = False
    document_start: int | None = None
    num_labels: int | None = None

    def __post_init__(self) -> None:
        if self.document_start is not None and not 0 <= self.document_start < self.vocab_size:
            raise ValueError(
                f"document_start is the index of a symbol: expected 0 to {self.vocab_size - 1} or none, got "
                f"{self.document_start}"
            )
        if self.num_labels is not None and (self.share_embedding or self.tie_adaptive_weights):
            raise ValueError(
                "share_embedding and tie_adaptive_weights use one matrix for the symbols that are read and predicted: "
                "not with num_labels, since labels are other symbols"
            )
        if self.share_embedding and (self.adaptive_input or self.adaptive_softmax):
            raise ValueError("share_embedding shares one full matrix: not with adaptive_input or adaptive_softmax")
        if self.tie_adaptive_weights and (self.adaptive_input is None or self.adaptive_input != self.adaptive_softmax):
            raise ValueError(
                "tie_adaptive_weights needs the same clusters in adaptive_input and adaptive_softmax, got "
                f"{self.adaptive_input} and {self.adaptive_softmax}"
            )
        if self.tie_adaptive_proj and not self.tie_adaptive_weights:
            raise ValueError("tie_adaptive_proj only works together with tie_adaptive_weights")

    @property
    def output_size(self) -> int:
        """Number of symbols that are predicted."""
        return self.vocab_size if self.num_labels is None else self.num_labels

    def with_policy_options(self, **options: Any) -> "LanguageModelConfig":
        """Returns the configuration of the same model with other options of its policy.

        Raises:
            ValueError: if the policy has no option of that name.
        """
        return replace(self, policy=_policy_from_json({**_policy_to_json(self.policy), **options}))

    def to_json(self) -> dict[str, Any]:
        """Returns plain values for a JSON file.

        Raises:
            ValueError: if the policy is not one of ``POLICIES``.
        """
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("adaptive_input", "adaptive_softmax"):
            if content[name] is not None:
                content[name] = {"cutoffs": list(content[name].cutoffs), "factor": content[name].factor}
        return {**content, "policy": _policy_to_json(self.policy)}

    @classmethod
    def from_json(cls, content: Any) -> "LanguageModelConfig":
        """Reads what :meth:`to_json` returned.

        Raises:
            ValueError: if a field is missing, unknown or of another type.
        """
        values = dict(_object(content, "a model"))
        known = {field.name: field for field in fields(cls)}
        for name, field in known.items():
            if name not in values and field.default is MISSING:
                raise ValueError(f"the field {name} of a model is missing")
        for name, value in values.items():
            if name not in known:
                raise ValueError(f"the field {name} of a model is not known")
            if name == "policy":
                values[name] = _policy_from_json(value)
            elif name in ("adaptive_input", "adaptive_softmax"):
                values[name] = None if value is None else _clusters_from_json(value)
            else:
                _check_type(name, value, known[name].type)
        return cls(**values)


def _check_type(name: str, value: Any, expected: Any) -> None:
    # JSON does not tell 1 from 1.0; a bool is not a number here.
    types = get_args(expected) or (expected,)
    if type(value) not in types and (type(value), expected) != (int, float):
        names = " or ".join(each.__name__ for each in types)
        raise ValueError(f"the field {name} of a model is {value!r}, expected {names}")


def _object(content: Any, of: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ValueError(f"{of} is described by a JSON object, got {content!r}")
    return content


def _clusters_from_json(content: Any) -> Clusters:
    try:
        return Clusters(cutoffs=tuple(int(rank) for rank in content["cutoffs"]), factor=float(content["factor"]))
    except (TypeError, KeyError, ValueError):
        raise ValueError(f"clusters are described by cutoffs and factor, got {content!r}") from None


def _policy_to_json(policy: Callable[[], MemoryPolicy]) -> dict[str, Any]:
    if isinstance(policy, partial) and not policy.args:
        for name, kind in POLICIES.items():
            if policy.func is kind:
                return {"name": name, **policy.keywords}
    raise ValueError(
        f"this model remembers with {type(policy()).__name__}, which only the code that defines it can make: expected "
        f"one of the policies {', '.join(POLICIES)}, whose options can be written down"
    )


def _policy_from_json(content: Any) -> Callable[[], MemoryPolicy]:
    options = dict(_object(content, "a policy"))
    name = options.pop("name", None)
    if name not in POLICIES:
        raise ValueError(f"there is no memory policy {name!r}: expected one of {', '.join(POLICIES)}")
    policy = partial(POLICIES[name], **options)
    try:
        policy()
    except TypeError as error:
        raise ValueError(f"the memory policy {name} cannot be made with these options ({error})") from None
    return policy


def check_weight_names(names: Iterable[str], *, model: str) -> None:
    """Raises ValueError if weights have the names that earlier versions gave them.

    Args:
        names: the names of the weights in a checkpoint.
        model: what the checkpoint is called in the message.
    """
    if "decoder.stack.position" in names:
        raise ValueError(
            f"{model} was written by an earlier version of fairseq_expire, which gave its weights other names: "
            "use that version, or train it again"
        )
