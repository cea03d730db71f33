"""A check of the options that are part of a trained model, which must not change when training goes on.

fairseq takes the options of the command line, whatever the checkpoint was trained with.
"""

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from typing import Any, NamedTuple

from fairseq import options
from fairseq.models import ARCH_MODEL_NAME_REGISTRY, MODEL_DATACLASS_REGISTRY

# Key in the metadata of an option's field: the option is part of the trained model.
TRAINED = "trained"
# A value of this key: the weights fit with any value of the option. A run that takes only the weights may change it.
SPANS = "spans"


class Difference(NamedTuple):
    """An option (``--max-span``), its value in the checkpoint and in this run; whether the weights fit with both."""

    option: str
    trained: str
    asked: str
    weights_fit: bool


def differences(trained: Mapping[str, Any], asked: Mapping[str, Any]) -> list[Difference]:
    """Returns the options that are part of the model and differ.

    Args:
        trained: the model options in a checkpoint.
        asked: the model options of this run.
    """
    architecture, other = (ARCH_MODEL_NAME_REGISTRY.get(model["_name"], model["_name"]) for model in (trained, asked))
    if architecture != other:
        return [Difference("--arch", architecture, other, weights_fit=False)]
    relevant = [field for field in fields(MODEL_DATACLASS_REGISTRY[other]) if TRAINED in field.metadata]
    found = []
    before, now = _values_in_use(trained, relevant), _values_in_use(asked, relevant)
    for field in relevant:
        one, two = before[field.name], now[field.name]
        if one != two:
            option = f"--{field.name.replace('_', '-')}"
            found.append(Difference(option, _shown(one), _shown(two), field.metadata[TRAINED] == SPANS))
    return found


def _values_in_use(model: Mapping[str, Any], relevant) -> dict[str, Any]:
    """Returns values by name, None for options that the model does not use.

    An option that a checkpoint does not have yet gets its default.
    """
    # omegaconf's get would return the default for a value of None, too.
    values = {field.name: model[field.name] if field.name in model else _default(field) for field in relevant}
    for clusters, present in (
        ("adaptive_input", values["adaptive_input"]),
        ("adaptive_softmax", values["adaptive_softmax_cutoff"] is not None),
    ):
        cutoff, factor = f"{clusters}_cutoff", f"{clusters}_factor"
        values[factor] = float(values[factor]) if present else None
        # The same numbers can be written in several ways.
        values[cutoff] = (
            options.eval_str_list(values[cutoff], type=int) if present and values[cutoff] is not None else None
        )
    # A choice is an enumeration in a run and a string in a checkpoint.
    return {
        name: value if isinstance(value, (int, float, list, type(None))) else str(value)
        for name, value in values.items()
    }


def _default(field: Field) -> Any:
    if field.type is bool and isinstance(field.default, str):
        # The task's option of that name, off in checkpoints that were written before it was there.
        return False
    return None if field.default is MISSING else field.default


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return ",".join(map(str, value))
    return "none" if value is None else str(value)


def check_trained_options(
    path: str, trained: Mapping[str, Any], asked: Mapping[str, Any], *, weights_only: bool
) -> str:
    """Checks that a run goes on with the model of a checkpoint.

    Args:
        path: of the checkpoint.
        trained, asked: see :func:`differences`.
        weights_only: whether the run takes the weights alone and begins anew.
    Returns:
        A message about the allowed differences of a run that takes the weights alone; empty if there are none.
    Raises:
        ValueError: the model is another one.
    """
    different = differences(trained, asked)
    refused = [each for each in different if not (weights_only and each.weights_fit)]

    def values(of: list[Difference], name: str) -> str:
        return ", ".join(f"{each.option} {getattr(each, name)}" for each in of)

    if refused:
        fits = all(each.weights_fit for each in refused)
        raise ValueError(
            f"{path} was trained with {values(refused, 'trained')}, and this run asks for {values(refused, 'asked')}: "
            "that is part of the trained model; give what it was trained with, or train a new model in another "
            "--save-dir"
            + (" (or, in one, take its weights alone into other spans with --finetune-from-model)" if fits else "")
        )
    if not different:
        return ""
    return f"the weights of {path} were trained with {values(different, 'trained')}, here {values(different, 'asked')}"
