"""Checkpoints of fairseq-train. Reading one needs fairseq, which knows what its options mean."""

from pathlib import Path
from typing import Any

import torch
from fairseq import utils
from fairseq.dataclass.utils import merge_with_parent
from fairseq.models import ARCH_MODEL_NAME_REGISTRY, ARCH_MODEL_REGISTRY, MODEL_DATACLASS_REGISTRY
from omegaconf import DictConfig, OmegaConf

from fairseq_expire.inference.checkpoint_problems import NO_MODEL, problem_of
from fairseq_expire.models.memory_lm import MemoryLanguageModel
from fairseq_expire.modules import LanguageModel, dictionary_digest
from fairseq_expire.tokenizers.bound import BoundTokenizer
from fairseq_expire.tokenizers.dictionary_check import DIGEST, check_dictionary, check_names

PREFIX = "decoder."


def read_checkpoint(
    path: Path, data: Path | None, *, span_limit: int | None = None
) -> tuple[LanguageModel, BoundTokenizer, Path]:
    """The model of a checkpoint, its codec, and the data-bin that this came from.

    Args:
        path: of the checkpoint.
        data: a data-bin made with the same dictionary; None for the one the model was trained on.
        span_limit: instead of the one in its options.
    Raises:
        FileNotFoundError: the checkpoint or the data-bin is not there.
        ValueError: the checkpoint is damaged, holds code, or is of another kind of model.
    """
    state = _load(path)
    cfg = OmegaConf.create(state["cfg"])
    kind = _kind(path, cfg)
    if data is None:
        data = Path(utils.split_paths(cfg.task.data)[0])
        if not data.is_dir():
            raise FileNotFoundError(
                f"{path} was trained on {data}, which is not there: give a data-bin with the same dict.txt"
            )
    codec = BoundTokenizer.of(data)
    defaults = MODEL_DATACLASS_REGISTRY[ARCH_MODEL_NAME_REGISTRY[cfg.model._name]]()
    if span_limit is not None:
        cfg.model.span_limit = span_limit
    check_dictionary(
        cfg.model.get(DIGEST), codec.symbols, model=f"the checkpoint {path}", dictionary=str(data / "dict.txt")
    )
    check_names(state["model"], model=f"the checkpoint {path}")
    description = kind.model_config(merge_with_parent(defaults, cfg.model, remove_missing=True), codec.dictionary)
    weights = {name.removeprefix(PREFIX): value for name, value in state["model"].items()}
    with torch.random.fork_rng(devices=[]):
        model = LanguageModel(description, dictionary_digest(codec.symbols))
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{path}: the weights are not those of its options ({' '.join(str(error).split())})") from None
    return model, codec, data


def _load(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    # What torch raises depends on where a file breaks off.
    except Exception as error:
        problem = problem_of(str(path), error)
        if problem is None:
            raise
        raise ValueError(f"{path} {problem}") from error
    if (
        not isinstance(state, dict)
        or not isinstance(state.get("cfg"), dict)
        or not isinstance(state.get("model"), dict)
    ):
        raise ValueError(f"{path} {NO_MODEL}")
    return state


def _kind(path: Path, cfg: DictConfig) -> type[MemoryLanguageModel]:
    name = cfg.model._name
    kind = ARCH_MODEL_REGISTRY.get(name)
    if kind is None:
        raise ValueError(
            f"{path}: nothing here knows the architecture {name}; import the package that registers it first"
        )
    if not issubclass(kind, MemoryLanguageModel):
        raise ValueError(f"{path}: {name} is not a model of fairseq_expire; load it with fairseq")
    return kind
