"""What a language model is built from, as a value that can go to a JSON file and come back."""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from functools import partial
from typing import Any

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
        symbols: V, size of the dictionary.
        pad: its padding symbol, which stands for no token.
        embed_dim, num_heads, ffn_dim, num_layers, position_range, pre_norm, dropout, attention_dropout, activation_dropout,
            checkpoint_activations: see :class:`MemoryTransformer`.
        policy: makes the memory policy of a layer; a ``functools.partial`` of one of ``POLICIES`` with keywords can be exported.
        dropout_in: dropout on the embedding.
        dropout_out: dropout on the output of the last layer.
        scale_embedding: whether embeddings are multiplied by sqrt(D).
        share_embedding: one matrix for input and output.
        adaptive_input: bands of an adaptive input embedding; None for a plain one.
        adaptive_softmax: bands of an adaptive softmax; None for a full one.
        adaptive_softmax_dropout: dropout in it.
        tie_adaptive_weights, tie_adaptive_proj: share the words, and the projections, of the two.
    Raises:
        ValueError: if what is to be shared is not there twice.
    """

    symbols: int
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

    def __post_init__(self):
        if self.share_embedding and (self.adaptive_input or self.adaptive_softmax):
            raise ValueError("share_embedding shares one full matrix: not with adaptive_input or adaptive_softmax")
        if self.tie_adaptive_weights and (self.adaptive_input is None or self.adaptive_input != self.adaptive_softmax):
            raise ValueError(
                "tie_adaptive_weights needs the same bands in adaptive_input and adaptive_softmax, got "
                f"{self.adaptive_input} and {self.adaptive_softmax}"
            )
        if self.tie_adaptive_proj and not self.tie_adaptive_weights:
            raise ValueError("tie_adaptive_proj only works together with tie_adaptive_weights")

    def with_policy_options(self, **options: Any) -> "LanguageModelConfig":
        """The same model whose policy is made with other options. Raises ValueError if the policy has none of that name."""
        described = {**_policy_to_json(self.policy), **options}
        return replace(self, policy=_policy_from_json(described))

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file. Raises ValueError if the policy is not one of ``POLICIES``."""
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("adaptive_input", "adaptive_softmax"):
            if content[name] is not None:
                content[name] = {"cutoff": list(content[name].cutoff), "factor": content[name].factor}
        return {**content, "policy": _policy_to_json(self.policy)}

    @classmethod
    def from_json(cls, content: Any) -> "LanguageModelConfig":
        """The inverse of :meth:`to_json`. Raises ValueError, naming the field, if it is not what that gives."""
        values = dict(_object(content, "a model"))
        known = {field.name: field for field in fields(cls)}
        for name, field in known.items():
            if name not in values and field.default is MISSING:
                raise ValueError(f"the field {name} of a model is missing")
        for name in values:
            if name not in known:
                raise ValueError(f"the field {name} of a model is not known")
            if name == "policy":
                values[name] = _policy_from_json(values[name])
            elif name in ("adaptive_input", "adaptive_softmax"):
                values[name] = None if values[name] is None else _bands(values[name])
            elif type(values[name]) is not known[name].type and (type(values[name]), known[name].type) != (int, float):
                raise ValueError(
                    f"the field {name} of a model is {values[name]!r}, expected {known[name].type.__name__}"
                )
        return cls(**values)


def _object(content: Any, of: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ValueError(f"{of} is described by a JSON object, got {content!r}")
    return content


def _bands(content: Any) -> Clusters:
    try:
        return Clusters(cutoff=tuple(int(rank) for rank in content["cutoff"]), factor=float(content["factor"]))
    except (TypeError, KeyError, ValueError):
        raise ValueError(f"bands are described by cutoff and factor, got {content!r}") from None


def _policy_to_json(policy: Callable[[], MemoryPolicy]) -> dict[str, Any]:
    for name, kind in POLICIES.items():
        if isinstance(policy, partial) and policy.func is kind and not policy.args:
            return {"name": name, **policy.keywords}
    raise ValueError(
        f"this model remembers with {type(policy()).__name__}, which only the code that defines it can make: expected one of "
        f"the policies {', '.join(POLICIES)}, whose options can be written down"
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
