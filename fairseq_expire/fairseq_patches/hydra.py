"""The end of a ``fairseq-hydra-train`` run that cannot begin: its last line is the error, as in ``fairseq-train``.

Hydra prints a hint below the error. An option in the message also gets its name in a config file.
"""

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


def show_error_last() -> None:
    """Makes an error message the last line under Hydra. Does nothing outside of Hydra."""
    if not HydraConfig.initialized():
        return
    # Hydra's own switch for the whole traceback, without the hint below it.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _print


def _print(kind, error, traceback) -> None:
    if isinstance(error, ValueError) and len(error.args) == 1:
        error.args = (with_config_names(str(error)),)
    sys.__excepthook__(kind, error, traceback)


def with_config_names(message: str) -> str:
    """Returns a message with the config names of its options behind it: ``(in a config file: model.max_span)``."""
    config_names = _config_names()
    named = dict.fromkeys(config_names[option] for option in OPTION.findall(message) if option in config_names)
    return f"{message} (in a config file: {', '.join(named)})" if named else message


def _config_names() -> dict[str, str]:
    """Returns ``{"max-span": "model.max_span", ...}``."""
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
            # A value that a group takes from another group, "${other.name}", is given there.
            if not str(field.default).endswith(f".{field.name}}}"):
                names.setdefault(field.name.replace("_", "-"), f"{group}.{field.name}")
    return names
