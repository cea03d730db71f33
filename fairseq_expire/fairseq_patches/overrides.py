"""A check of ``--model-overrides``: fairseq ignores names that the options of a checkpoint do not have."""

import difflib
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from fairseq.dataclass.utils import overwrite_args_by_name
from fairseq.models import ARCH_MODEL_REGISTRY
from omegaconf import DictConfig, OmegaConf

from fairseq_expire.modules.config import MODEL_CONFIG
from fairseq_expire.tokenizers.dictionary import DIGEST, LABEL_DIGEST


def options_of(path: str) -> DictConfig | None:
    """Reads the options in a checkpoint. Returns None if the file cannot be read, or has options of another form."""
    try:
        # Memory-mapped, so that the weights are not read.
        cfg = torch.load(path, map_location="cpu", mmap=True, weights_only=True)["cfg"]
        cfg = OmegaConf.create(cfg, flags={"allow_objects": True})
        return cfg if cfg.model._name is not None else None
    # Any exception: whoever loads the file tells what is wrong with it.
    except Exception:
        return None


def check_overrides(paths: Iterable[str], overrides: Mapping[str, Any]) -> None:
    """Checks that each override is an option of at least one of the checkpoints.

    A checkpoint that cannot be read, or has an unknown architecture, counts as having every option.

    Args:
        paths: of the checkpoints.
        overrides: values by name, or by group and name.
    Raises:
        ValueError: an override is no option; the message lists the options.
    """
    if not isinstance(overrides, Mapping):
        raise ValueError(f"overrides are a dictionary such as {{'span_limit': 1024}}, got {overrides!r}")
    unknown: set[str] | None = None
    options: set[str] = set()
    for path in paths:
        cfg = options_of(path)
        kind = None if cfg is None else ARCH_MODEL_REGISTRY.get(cfg.model._name)
        if kind is None:
            return
        options |= {name for group in ("model", "task") for name in cfg[group] if not name.startswith("_")}
        options -= {DIGEST, LABEL_DIGEST, MODEL_CONFIG}
        changed = cfg.copy()
        # With the options of groups that an override replaces, such as those of another --bpe.
        overwrite_args_by_name(
            changed, {name: value for name, value in overrides.items() if not isinstance(value, dict)}
        )
        missing = set(_unknown(cfg, overrides, set(_names(changed))))
        unknown = missing if unknown is None else unknown & missing
    if not unknown:
        return
    meant = difflib.get_close_matches(min(unknown).rpartition(".")[2], options, n=1)
    raise ValueError(
        f"there is no option {', '.join(sorted(unknown))} to override in the checkpoint"
        + (f" (is {meant[0]} meant?)" if meant else "")
        + f": expected names such as those of the model and the task, {', '.join(sorted(options))}"
    )


def _names(cfg: Any) -> Iterator[str]:
    """Yields the names of all options and groups, at every depth."""
    for name in vars(cfg) if isinstance(cfg, Namespace) else cfg:
        yield name
        value = vars(cfg)[name] if isinstance(cfg, Namespace) else cfg._get_node(name)
        if isinstance(value, (DictConfig, Namespace)) and not (isinstance(value, DictConfig) and value._is_none()):
            yield from _names(value)


def _unknown(cfg: DictConfig, overrides: Mapping[str, Any], names: set[str]) -> Iterator[str]:
    """Yields the overrides without effect on ``cfg``, which has these names."""
    for name, value in overrides.items():
        group = cfg.get(name) if name in cfg else None
        if isinstance(value, dict) and isinstance(group, DictConfig):
            yield from (f"{name}.{inner}" for inner in _unknown(group, value, set(group)))
        elif name not in names:
            yield name
