"""Expire-Span language models for fairseq.

Importing this package does not import fairseq and registers nothing: ``fairseq_expire.modules``,
``fairseq_expire.inference`` and :func:`load` work without it. The task, the criterion and the architectures are
registered when fairseq loads the package as a user directory (``--user-dir fairseq_expire``), or by :func:`register`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fairseq_expire.inference import load

__version__ = "0.1.0"
__all__ = ["load", "register"]


def register() -> None:
    """Registers the task, the criterion and the architectures with fairseq, and installs ``fairseq_patches``.

    fairseq's commands do this through ``--user-dir``, and importing ``fairseq_expire.tasks``, ``models`` or
    ``criterions`` does it, too. A second call does nothing.

    Raises:
        ImportError: fairseq is missing, or it is not the supported version.
    """
    importlib.import_module("fairseq_expire.tasks")


def __getattr__(name: str) -> Any:
    # Imported on demand: training does not need it.
    if name == "load":
        from fairseq_expire.inference import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# By the name of this folder: a renamed folder may be the only copy, and then there is no package "fairseq_expire" to
# import from.
user_dir = importlib.import_module(f"{__name__}.fairseq_patches.user_dir")
if __name__ != user_dir.NAME:
    user_dir.become(__name__, __path__[0])
else:
    __path__ = user_dir.SearchPath(__path__)
    if user_dir.is_loading():
        register()
