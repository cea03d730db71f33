"""The version of fairseq that this package extends, and the error messages for a missing or a wrong one."""

import importlib.util
import os
import platform
import sys

VERSION = "0.12.3"
# The same as the markers in pyproject.toml.
BUILDS = "CPython 3.11 and 3.12 on Linux x86_64"


def folder() -> str | None:
    """Returns the folder of the fairseq that an import finds; None where there is none."""
    spec = importlib.util.find_spec("fairseq")
    # A plain folder of that name, such as a checkout in the current folder, has no origin.
    return None if spec is None or spec.origin is None else os.path.dirname(spec.origin)


def check() -> None:
    """Imports fairseq.

    Raises:
        ImportError: fairseq cannot be imported, or it is not the supported version.
    """
    try:
        import fairseq

        found = f"is version {fairseq.__version__}"
    # Any exception: an old fairseq ends in a ValueError from `dataclasses` on Python 3.11.
    except Exception as error:
        found = f"cannot be imported ({type(error).__name__}: {error})"
    if found != f"is version {VERSION}":
        raise ImportError(
            f"fairseq_expire needs fairseq {VERSION}, but the one in {folder()} {found}; "
            f"type: pip uninstall -y fairseq ve-fairseq && pip install ve-fairseq=={VERSION}"
        )


def absence() -> str:
    """Returns the end of the message for a missing fairseq: how to install it, or why it is not available here."""
    implementation, (major, minor) = platform.python_implementation(), sys.version_info[:2]
    here = implementation, sys.platform, platform.machine()
    if here == ("CPython", "linux", "x86_64") and (3, 11) <= (major, minor) <= (3, 12):
        return f"fairseq, which is not installed; type: pip install ve-fairseq=={VERSION}"
    return (
        f"fairseq, of which there are builds for {BUILDS}, and this is {implementation} {major}.{minor} on "
        f"{platform.system()} {platform.machine()}; fairseq_expire.modules and fairseq_expire.load work here, too"
    )


def require_for_command(prog: str) -> None:
    """Ends a command with one line and status 2, as argparse does for wrong options, if fairseq is missing."""
    if folder() is None:
        print(f"{prog}: error: it needs {absence()}", file=sys.stderr)
        sys.exit(2)
