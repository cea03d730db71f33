"""Checkpoints of fairseq-train, read with torch alone: training stores in them how to build the model."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fairseq_expire.inference.checkpoint_problems import NO_MODEL, problem_of
from fairseq_expire.modules import LanguageModel, LanguageModelConfig
from fairseq_expire.modules.config import MODEL_CONFIG, check_weight_names
from fairseq_expire.tokenizers.bound import BoundTokenizer
from fairseq_expire.tokenizers.dictionary import DIGEST, LABEL_DIGEST, SymbolTable, check_dictionary, dictionary_digest

# What fairseq puts in front of the names of the model's weights.
PREFIX = "decoder.model."


class CheckpointContent(NamedTuple):
    """The model of a checkpoint, the tokenizer of its data, and the data-bin that the tokenizer is read from."""

    model: LanguageModel
    tokenizer: BoundTokenizer
    data: Path


def read_checkpoint(
    path: Path, data: Path | None, policy_options: Mapping[str, Any] | None = None
) -> CheckpointContent:
    """Builds the model of a checkpoint and loads its weights.

    Args:
        path: the checkpoint file.
        data: a data-bin with the dictionary of the training data; None for the data-bin that the checkpoint names.
        policy_options: replace the checkpoint's own options of the memory policy.
    Raises:
        FileNotFoundError: if the data-bin does not exist.
        ValueError: if the checkpoint is damaged, holds code, is of another kind of model or of an earlier version.
    """
    state = _load(path)
    options = state["cfg"]["model"]
    _check_kind(path, options)
    data = data or _training_data(path, state["cfg"]["task"])
    tokenizer = BoundTokenizer.load(data)
    check_dictionary(
        options.get(DIGEST), tokenizer.symbols, model=f"the checkpoint {path}", dictionary=str(data / "dict.txt")
    )
    check_weight_names(state["model"], model=f"the checkpoint {path}")
    config = _model_config(path, options, tokenizer.dictionary, policy_options or {})
    if len(tokenizer.symbols) != config.vocab_size:
        raise ValueError(
            f"{data / 'dict.txt'}: {len(tokenizer.symbols)} symbols, and the model in {path} has {config.vocab_size}; "
            "give the data it was trained on"
        )
    weights = {name.removeprefix(PREFIX): value for name, value in state["model"].items()}
    # The caller's random numbers stay as they are.
    with torch.random.fork_rng(devices=[]):
        model = LanguageModel(config, dictionary_digest(tokenizer.symbols))
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{path}: the weights are not those of its options ({' '.join(str(error).split())})") from None
    return CheckpointContent(model, tokenizer, data)


def _load(path: Path) -> dict[str, Any]:
    """Reads the file; its ``cfg`` has the options of ``model`` and ``task``."""
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
        or not isinstance(state.get("model"), dict)
        or not isinstance(cfg := state.get("cfg"), dict)
        or not all(isinstance(cfg.get(group), dict) for group in ("model", "task"))
    ):
        raise ValueError(f"{path} {NO_MODEL}")
    return state


def _check_kind(path: Path, options: dict[str, Any]) -> None:
    """Raises ValueError unless this version trained the model, and it reads and writes text."""
    if options.get(LABEL_DIGEST) is not None:
        raise ValueError(
            f"{path} predicts labels, and can neither generate nor score text: score it with fairseq-eval-lm or "
            "fairseq-validate, --task memory_caching_tagging"
        )
    if MODEL_CONFIG in options:
        return
    if DIGEST in options:
        raise ValueError(
            f"{path} was written by an earlier version of fairseq_expire, which did not store how to build its model: "
            "use that version, or train it again"
        )
    raise ValueError(f"{path}: {options.get('_name')} is not a model of fairseq_expire; load it with fairseq")


def _training_data(path: Path, options: dict[str, Any]) -> Path:
    """Returns the first folder of the training data. Raises FileNotFoundError if it does not exist."""
    folders = str(options.get("data"))
    # As fairseq.utils.split_paths, whose paths are those of Linux.
    data = Path(folders.split("|" if "://" in folders else ":")[0])
    if not data.is_dir():
        raise FileNotFoundError(
            f"{path} was trained on {data}, which is not there: give a data-bin with the same dict.txt"
        )
    return data


def _model_config(
    path: Path, options: dict[str, Any], dictionary: SymbolTable, policy_options: Mapping[str, Any]
) -> LanguageModelConfig:
    """Reads the stored configuration, or asks the architecture for it where none could be stored."""
    stored = options[MODEL_CONFIG]
    if stored is None:
        limited = {**options, **policy_options}
        return _describe(path, limited, dictionary)
    try:
        config = LanguageModelConfig.from_json(json.loads(stored))
        return config.with_policy_options(**policy_options) if policy_options else config
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _describe(path: Path, options: dict[str, Any], dictionary: SymbolTable) -> LanguageModelConfig:
    """Asks an architecture of the user's own, registered with a fairseq that is imported already.

    Raises:
        ValueError: if no such architecture is registered.
    """
    models, name = sys.modules.get("fairseq.models"), options.get("_name")
    architecture = None if models is None else models.ARCH_MODEL_REGISTRY.get(name)
    if not hasattr(architecture, "make_config"):
        raise ValueError(
            f"{path}: nothing here knows the architecture {name}, whose memory policy only the code that defines it "
            "can make; import the package that registers it first"
        )
    # Architectures read options of this type; fairseq has imported its module.
    return architecture.make_config(sys.modules["omegaconf"].OmegaConf.create(options), dictionary)
