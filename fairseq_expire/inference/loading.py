"""From a path to a model that is ready."""

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
) -> TextModel:
    """A trained model, ready to read and write text.

    Args:
        path: a folder that ``python -m fairseq_expire.export`` made, for which fairseq is not needed; or a checkpoint of
            ``fairseq-train``.
        data: with a checkpoint: the data-bin whose dictionary it was trained with, if that is not where it was then.
        device: where the model runs.
        dtype: of the weights; None for float32.
        span_limit: remember nothing for longer than this many steps, as ``--model-overrides`` has it.
    Raises:
        FileNotFoundError: there is nothing at ``path``, or a file that belongs to it is missing.
        ValueError: a file is damaged, holds code, or belongs to another model; an argument is out of its range.
    """
    let_waiting_threads_sleep()
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: not there; expected a checkpoint, or a folder made by python -m fairseq_expire.export"
        )
    if path.is_dir():
        if data is not None:
            raise ValueError(f"{path} is an exported model, which has its own dictionary: leave data out")
        model, codec = read_folder(path, span_limit=span_limit)
    else:
        model, codec, _ = read_checkpoint(path, None if data is None else Path(data), span_limit=span_limit)
    return TextModel(model.to(device=device, dtype=dtype), codec)
