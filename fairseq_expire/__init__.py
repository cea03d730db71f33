"""Expire-Span language models for fairseq. Importing this registers them; without fairseq, ``fairseq_expire.modules`` still works,
and :func:`fairseq_expire.inference.load`, here ``fairseq_expire.load``, reads models that were exported."""

from typing import Any

from fairseq_expire import fairseq_version
from fairseq_expire.fairseq_patches import user_dir

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Only when it is asked for: training has no need of it.
    if name == "load":
        from fairseq_expire.inference import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if __name__ != user_dir.NAME:
    user_dir.become(__name__, __path__[0])
elif fairseq_version.folder() is not None:
    from fairseq_expire.fairseq_patches import stray_lines

    stray_lines.silence()
    fairseq_version.check()
    __path__ = user_dir.Folders(__path__)

    from fairseq_expire import criterions, models, tasks  # noqa: F401  (registers what they hold)
