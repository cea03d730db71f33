"""Options that are part of a trained model: training goes on from a checkpoint only with those that it was trained with."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, NamedTuple

from fairseq import options
from fairseq.models import ARCH_MODEL_NAME_REGISTRY, MODEL_DATACLASS_REGISTRY

# In the metadata of an option's field: it is part of the trained model.
TRAINED = "trained"
# As its value: weights fit either way, and who takes them alone may mean another value.
SPANS = "spans"


class Difference(NamedTuple):
    """An option (``--max-span``) with its value in the checkpoint and in this run, and whether weights fit either way."""

    option: str
    trained: str
    asked: str
    weights_fit: bool


def differences(trained: Mapping[str, Any], asked: Mapping[str, Any]) -> list[Difference]:
    """The options that are part of the model and differ.

    Args:
        trained: the options of a checkpoint's model.
        asked: those of the model that is to go on from there.
    """
    architecture, other = (ARCH_MODEL_NAME_REGISTRY.get(model["_name"], model["_name"]) for model in (trained, asked))
    if architecture != other:
        return [Difference("--arch", architecture, other, weights_fit=False)]
    known = [field for field in fields(MODEL_DATACLASS_REGISTRY[other]) if TRAINED in field.metadata]
    found = []
    before, now = _in_use(trained, known), _in_use(asked, known)
    for field in known:
        one, two = before[field.name], now[field.name]
        if one != two:
            option = f"--{field.name.replace('_', '-')}"
            found.append(Difference(option, _shown(one), _shown(two), field.metadata[TRAINED] == SPANS))
    return found


def _in_use(model: Mapping[str, Any], known) -> dict[str, Any]:
    """Values by name, as far as the model depends on them; for options that a checkpoint does not have yet, their defaults."""
    values = {
        field.name: model[field.name] if field.name in model else None if field.default is MISSING else field.default
        for field in known
    }
    for bands, present in (
        ("adaptive_input", values["adaptive_input"]),
        ("adaptive_softmax", values["adaptive_softmax_cutoff"] is not None),
    ):
        cutoff, factor = f"{bands}_cutoff", f"{bands}_factor"
        values[factor] = float(values[factor]) if present else None
        # Lists of the same numbers can be written in several ways.
        values[cutoff] = (
            options.eval_str_list(values[cutoff], type=int) if present and values[cutoff] is not None else None
        )
    # A choice is an enumeration here and a string in a checkpoint.
    return {
        name: value if isinstance(value, (int, float, list, type(None))) else str(value)
        for name, value in values.items()
    }


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return ",".join(map(str, value))
    return "none" if value is None else str(value)


def check_trained_options(
    path: str, trained: Mapping[str, Any], asked: Mapping[str, Any], *, weights_only: bool
) -> str:
    """Raises ValueError if a model that is to go on from a checkpoint is another one. Returns what is other all the same, where
    only weights are taken, in words; empty if nothing is.

    Args:
        path: of the checkpoint.
        trained, asked: see :func:`differences`.
        weights_only: whether training begins anew from the weights.
    """
    different = differences(trained, asked)
    other_model = [each for each in different if not (weights_only and each.weights_fit)]

    def values(of: list[Difference], name: str) -> str:
        return ", ".join(f"{each.option} {getattr(each, name)}" for each in of)

    if other_model:
        fits = all(each.weights_fit for each in other_model)
        raise ValueError(
            f"{path} was trained with {values(other_model, 'trained')}, and this run asks for {values(other_model, 'asked')}: that "
            "is part of the trained model; give what it was trained with, or train a new model in another --save-dir"
            + (" (or, in one, take its weights alone into other spans with --finetune-from-model)" if fits else "")
        )
    if not different:
        return ""
    return f"the weights of {path} were trained with {values(different, 'trained')}, here {values(different, 'asked')}"
