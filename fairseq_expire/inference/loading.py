"""``fairseq_expire.load``: a trained model from its path."""

from pathlib import Path

import torch

from fairseq_expire.inference.checkpoint import read_checkpoint
from fairseq_expire.inference.folder import read_folder
from fairseq_expire.inference.text_model import TextModel
from fairseq_expire.modules import let_waiting_threads_sleep


def load(
    path: str | Path,
    *,
    data: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    span_limit: int | None = None,
    memory_budget: int | None = None,
) -> TextModel:
    """Loads a trained model that scores and generates text.

    Needs no fairseq. A checkpoint of an architecture of your own, whose memory policy is not one of this package, is
    the exception: import the code that registers it first.

    Args:
        path: a checkpoint of ``fairseq-train``, or a folder that ``python -m fairseq_expire.export`` made.
        data: with a checkpoint, a data-bin with the dictionary of its training data; None for the training data itself.
        device: the device that the model runs on.
        dtype: the type of the weights; None for float32.
        span_limit: cuts every span to this many steps, as ``--model-overrides "{'span_limit': ...}"`` does.
        memory_budget: the most memories of a layer that a query sees, as ``{'memory_budget': ...}`` does there; None
            for that of the checkpoint.
    Returns:
        the model in ``eval`` mode, with the tokenizer of its data.
    Raises:
        FileNotFoundError: if ``path`` or a file that belongs to it does not exist.
        ValueError: if a file is damaged, holds code, or belongs to another model; if an argument is out of its range.
    """
    let_waiting_threads_sleep()
    given = {"span_limit": span_limit, "memory_budget": memory_budget}
    policy_options = {name: value for name, value in given.items() if value is not None}
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: not there; expected a checkpoint, or a folder made by python -m fairseq_expire.export"
        )
    if path.is_dir():
        if data is not None:
            raise ValueError(f"{path} is an exported model, which has its own dictionary: leave data out")
        exported = read_folder(path, policy_options)
        model, tokenizer = exported.model, exported.tokenizer
    else:
        checkpoint = read_checkpoint(path, None if data is None else Path(data), policy_options)
        model, tokenizer = checkpoint.model, checkpoint.tokenizer
    return TextModel(model.to(device=device, dtype=dtype), tokenizer)
