"""Options that are given in place of those in a checkpoint (``--model-overrides``): fairseq drops those it does not find."""

import difflib
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from fairseq.dataclass.utils import overwrite_args_by_name
from fairseq.models import ARCH_MODEL_REGISTRY
from omegaconf import DictConfig, OmegaConf

from fairseq_expire.tokenizers.dictionary import DIGEST


def options_of(path: str) -> DictConfig | None:
    """The options in a checkpoint; None if it cannot be read, or holds them in another form."""
    try:
        # Mapped, so that only what is looked at is read.
        cfg = torch.load(path, map_location="cpu", mmap=True, weights_only=True)["cfg"]
        cfg = OmegaConf.create(cfg, flags={"allow_objects": True})
        return cfg if cfg.model._name is not None else None
    # Whatever torch raises, or looking at what another program stored: who loads the file says what is wrong with it.
    except Exception:
        return None


def _names(cfg: Any) -> Iterator[str]:
    """All names in options, groups and what is in them."""
    for name in vars(cfg) if isinstance(cfg, Namespace) else cfg:
        yield name
        value = vars(cfg)[name] if isinstance(cfg, Namespace) else cfg._get_node(name)
        if isinstance(value, (DictConfig, Namespace)) and not (isinstance(value, DictConfig) and value._is_none()):
            yield from _names(value)


def _unknown(cfg: DictConfig, overrides: Mapping[str, Any], names: set[str]) -> Iterator[str]:
    """The overrides that change nothing in ``cfg``, which has these names."""
    for name, value in overrides.items():
        group = cfg.get(name) if name in cfg else None
        if isinstance(value, dict) and isinstance(group, DictConfig):
            yield from (f"{name}.{inner}" for inner in _unknown(group, value, set(group)))
        elif name not in names:
            yield name


def check_overrides(paths: Iterable[str], overrides: Mapping[str, Any]) -> None:
    """Raises ValueError, with the names there are, unless each override is an option of one of the checkpoints. Those that cannot
    be read, or are of an architecture that is not known, count as having them all.

    Args:
        paths: of the checkpoints.
        overrides: values by name, or by group and name.
    """
    if not isinstance(overrides, Mapping):
        raise ValueError(f"overrides are a dictionary such as {{'span_limit': 1024}}, got {overrides!r}")
    unknown: set[str] | None = None
    there: set[str] = set()
    for path in paths:
        cfg = options_of(path)
        kind = None if cfg is None else ARCH_MODEL_REGISTRY.get(cfg.model._name)
        if kind is None:
            return
        there |= {name for group in ("model", "task") for name in cfg[group] if not name.startswith("_")} - {DIGEST}
        changed = cfg.copy()
        # With what is put in whole groups, such as the options of another --bpe.
        overwrite_args_by_name(
            changed, {name: value for name, value in overrides.items() if not isinstance(value, dict)}
        )
        missing = set(_unknown(cfg, overrides, set(_names(changed))))
        unknown = missing if unknown is None else unknown & missing
    if not unknown:
        return
    meant = difflib.get_close_matches(min(unknown).rpartition(".")[2], there, n=1)
    raise ValueError(
        f"there is no option {', '.join(sorted(unknown))} to override in the checkpoint"
        + (f" (is {meant[0]} meant?)" if meant else "")
        + f": expected names such as those of the model and the task, {', '.join(sorted(there))}"
    )
