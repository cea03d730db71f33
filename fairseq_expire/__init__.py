"""Expire-Span language models for fairseq. Importing this registers them; without fairseq, ``fairseq_expire.modules`` still works,
and :func:`fairseq_expire.inference.load`, here ``fairseq_expire.load``, reads models that were exported."""

import importlib.util
import os
from typing import Any

__version__ = "0.1.0"

FAIRSEQ_VERSION = "0.12.3"


def _check_fairseq(folder):
    """Imports the fairseq in ``folder``; raises an ImportError of one sentence unless it is the supported one."""
    try:
        import fairseq

        found = f"is version {fairseq.__version__}"
    # Whatever it raises: an old fairseq ends in a ValueError from `dataclasses` on Python 3.11.
    except Exception as error:
        found = f"cannot be imported ({type(error).__name__}: {error})"
    if found != f"is version {FAIRSEQ_VERSION}":
        raise ImportError(
            f"fairseq_expire needs fairseq {FAIRSEQ_VERSION}, but the one in {folder} {found}; "
            f"type: pip uninstall -y fairseq ve-fairseq && pip install ve-fairseq=={FAIRSEQ_VERSION}"
        )


def __getattr__(name: str) -> Any:
    # Only when it is asked for: training has no need of it.
    if name == "load":
        from fairseq_expire.inference import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


_spec = importlib.util.find_spec("fairseq")
# A mere folder of that name, such as a checkout in the current folder, has no origin.
if _spec is not None and _spec.origin is not None:
    _folder = os.path.dirname(_spec.origin)
    _check_fairseq(_folder)

    # If this package was imported before fairseq reads `--user-dir fairseq_expire`, fairseq insists that the path it
    # makes of that name is, letter by letter, in the package's __path__.
    _user_dir = os.path.join(_folder, "..", __name__)
    if _user_dir not in __path__:
        __path__.append(_user_dir)

    from fairseq_expire import criterions, models, tasks  # noqa: F401  (registers what they hold)
