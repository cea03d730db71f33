"""What a user of ``fairseq-hydra-train`` sees when a run cannot begin: as with ``fairseq-train``, the sentence in the last line."""

import os
import re
import sys
from dataclasses import fields, is_dataclass

from fairseq.criterions import CRITERION_DATACLASS_REGISTRY
from fairseq.dataclass.configs import FairseqConfig
from fairseq.models import MODEL_DATACLASS_REGISTRY
from fairseq.tasks import TASK_DATACLASS_REGISTRY
from hydra.core.hydra_config import HydraConfig

OPTION = re.compile(r"(?<![\w-])--([a-z][a-z0-9-]*)")


def end_with_the_sentence() -> None:
    """Makes the sentence of an error the last line under Hydra, too, with the names that its options have in a config file. Does
    nothing elsewhere."""
    if not HydraConfig.initialized():
        return
    # Hydra's own switch: else it leaves out most of the traceback, and writes how to see it below the sentence.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _print


def _print(kind, error, traceback) -> None:
    if isinstance(error, ValueError) and len(error.args) == 1:
        error.args = (with_config_names(str(error)),)
    sys.__excepthook__(kind, error, traceback)


def with_config_names(sentence: str) -> str:
    """A sentence with what the options in it are called in a config file behind it."""
    known = _names()
    named = dict.fromkeys(known[option] for option in OPTION.findall(sentence) if option in known)
    return f"{sentence} (in a config file: {', '.join(named)})" if named else sentence


def _names() -> dict[str, str]:
    """``{"max-span": "model.max_span", ...}``."""
    groups = [(field.name, field.type) for field in fields(FairseqConfig) if is_dataclass(field.type)]
    for group, registry in (
        ("task", TASK_DATACLASS_REGISTRY),
        ("model", MODEL_DATACLASS_REGISTRY),
        ("criterion", CRITERION_DATACLASS_REGISTRY),
    ):
        groups += [
            (group, kind) for kind in registry.values() if kind.__module__.startswith(__package__.partition(".")[0])
        ]
    names: dict[str, str] = {}
    for group, kind in groups:
        for field in fields(kind):
            # What a group takes over from another one, "${other.name}", is given there.
            if not str(field.default).endswith(f".{field.name}}}"):
                names.setdefault(field.name.replace("_", "-"), f"{group}.{field.name}")
    return names
