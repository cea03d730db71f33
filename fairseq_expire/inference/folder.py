"""Exported models: folders with weights, the configuration, and the dictionary of the data."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from fairseq_expire.files import file_sha256, new_folder, write_atomically
from fairseq_expire.modules import LanguageModel, LanguageModelConfig
from fairseq_expire.tokenizers import manifest
from fairseq_expire.tokenizers.bound import BoundTokenizer
from fairseq_expire.tokenizers.dictionary import DIGEST, check_dictionary
from fairseq_expire.tokenizers.subwords import MODEL_FILE

FORMAT = 3
CONFIG, WEIGHTS, DICTIONARY = "config.json", "model.safetensors", "dict.txt"
# Files of a data-bin that tokenizers are read from; not all data has all of them.
TEXT_FILES = (DICTIONARY, manifest.FILE_NAME, MODEL_FILE)


def write_folder(dest: str | Path, model: LanguageModel, data: Path, *, version: str, force: bool) -> None:
    """Writes a model to a folder, which appears when it is complete.

    Args:
        dest: the folder to make.
        model: the model to write.
        data: a data-bin with the dictionary of the model.
        version: the version of this package, for information.
        force: replace an export that is at ``dest``.
    Raises:
        ValueError: if something else is at ``dest``; if only the code of its memory policy can make the model.
    """
    model_config = model.config.to_json()
    with new_folder(dest, force=force, mark=CONFIG) as folder:
        for name in TEXT_FILES:
            if (data / name).is_file():
                write_atomically(folder / name, (data / name).read_bytes())
        tokenizer = BoundTokenizer.load(folder)
        weights = {name: value.cpu().contiguous() for name, value in _distinct(model.state_dict()).items()}
        write_atomically(folder / WEIGHTS, safetensors.torch.save(weights))
        config = {
            "format": FORMAT,
            "version": version,
            "level": tokenizer.level,
            DIGEST: model.dictionary_digest,
            "model": model_config,
            "weights_sha256": file_sha256(folder / WEIGHTS),
        }
        write_atomically(folder / CONFIG, json.dumps(config, indent=2) + "\n")


class ExportedModel(NamedTuple):
    """The model of a folder, and the tokenizer of its data."""

    model: LanguageModel
    tokenizer: BoundTokenizer


def read_folder(folder: Path, policy_options: Mapping[str, Any]) -> ExportedModel:
    """Reads a folder that :func:`write_folder` wrote.

    Args:
        folder: the folder.
        policy_options: replace the options of the memory policy that the model was exported with.
    Returns:
        the model, and the tokenizer of its data.
    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is damaged, or of another export.
    """
    config = _read_config(folder / CONFIG)
    for name in (WEIGHTS, DICTIONARY):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"no {name} in {folder}, which {CONFIG} belongs to: export the model again")
    tokenizer = BoundTokenizer.load(folder)
    try:
        model_config = LanguageModelConfig.from_json(config["model"])
        if policy_options:
            model_config = model_config.with_policy_options(**policy_options)
        with torch.random.fork_rng(devices=[]):
            model = LanguageModel(model_config, config[DIGEST])
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from None
    if tokenizer.level != config["level"]:
        raise ValueError(
            f"{folder}: the model reads {config['level']}, but its {manifest.FILE_NAME} (or the lack of it) says "
            f"{tokenizer.level}; restore the file, or export the model again"
        )
    if len(tokenizer.symbols) != model_config.vocab_size:
        raise ValueError(
            f"{folder / DICTIONARY}: {len(tokenizer.symbols)} symbols, and the model has {model_config.vocab_size}; "
            "restore the file, or export the model again"
        )
    check_dictionary(config[DIGEST], tokenizer.symbols, model=f"the model in {folder}", dictionary="the dict.txt there")
    _load_weights(model, folder / WEIGHTS, config["weights_sha256"])
    return ExportedModel(model, tokenizer)


def _load_weights(model: LanguageModel, path: Path, sha256: str) -> None:
    if file_sha256(path) != sha256:
        raise ValueError(f"{path}: not the file that {CONFIG} was written with, or damaged; copy or export it again")
    try:
        weights = safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: cannot be read ({error}); copy or export it again") from None
    found, expected = _shapes(weights), _shapes(_distinct(model.state_dict()))
    if found != expected:
        name = min(name for name, _ in found.items() ^ expected.items())
        raise ValueError(
            f"{path}: not the weights of the model in {CONFIG}: {name} has shape {found.get(name, 'none')}, expected "
            f"{expected.get(name, 'none')}; export the model again"
        )
    # Weights that two modules share are stored once, so the other name is missing.
    model.load_state_dict(weights, strict=False)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"no {CONFIG} in {path.parent}: expected a folder made by python -m fairseq_expire.export, or the file of "
            "a checkpoint"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); restore the file, or export the model again") from None
    if not isinstance(config, dict) or not isinstance(config.get("format"), int):
        raise ValueError(f"{path}: not the configuration of an export; restore the file, or export the model again")
    if config["format"] < FORMAT:
        raise ValueError(
            f"{path} was written by an earlier version of fairseq_expire (format {config['format']}, expected "
            f"{FORMAT}): use that version, or train and export the model again"
        )
    if config["format"] > FORMAT:
        raise ValueError(
            f"{path} was written by a later version of fairseq_expire (format {config['format']}, expected "
            f"{FORMAT}): use that version"
        )
    for name in ("level", DIGEST, "model", "weights_sha256"):
        if name not in config:
            raise ValueError(f"{path}: {name} is missing; restore the file, or export the model again")
    return config


def _shapes(weights: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in weights.items()}


def _distinct(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns each tensor once, under the first of its names."""
    first: dict[int, str] = {}
    return {name: value for name, value in state.items() if first.setdefault(value.data_ptr(), name) == name}
