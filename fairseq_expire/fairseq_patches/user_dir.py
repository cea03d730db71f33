"""Registration when fairseq loads this package with ``--user-dir``, by any path and any name.

``fairseq.utils.import_user_module`` takes the last part of the path as the name of a package. If no package of this
name is imported yet, it imports it, and then every module in its folders ``tasks`` and ``models``. Otherwise it only
asks whether the path is in the package's ``__path__``. So this package registers itself in two moments: when it is
imported during such a call, and when it is asked for a path during such a call. A user directory that builds on this
package is such a call as well.

The package registers under one name, ``fairseq_expire``. A folder with another name (a link, or a renamed folder)
becomes a second name of that package, so that nothing is registered twice.

Neither this module nor ``fairseq_patches/__init__.py`` imports anything of fairseq or of this package: both are
imported with the package itself, under the name of its folder.
"""

import importlib
import importlib.util
import os
import pkgutil
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

NAME = "fairseq_expire"
# The packages of which fairseq imports every module, under the name of the user directory.
SCANNED = ("models", "tasks")


def is_loading() -> bool:
    """Returns whether fairseq is loading a user directory right now: whether its function is among the callers."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "import_user_module" and frame.f_globals.get("__name__") == "fairseq.utils":
            return True
        frame = frame.f_back
    return False


class SearchPath(list):
    """The package's ``__path__``, which contains every path to the package's folder, not only the imported one.

    Without this, fairseq would advise to rename the folder, which does not help.
    """

    def __contains__(self, path: object) -> bool:
        """Returns whether a path leads to the package, and registers the package if it is fairseq that asks.

        Raises:
            ImportError: the path leads to another copy of the package; the message names both.
        """
        if not isinstance(path, str):
            return False
        # An editable install leaves a folder without code beside fairseq's own.
        has_code = os.path.isfile(os.path.join(path, "__init__.py"))
        if has_code and not any(os.path.realpath(path) == os.path.realpath(folder) for folder in self):
            raise ImportError(_two_copies(path, self[0]))
        if is_loading():
            sys.modules[NAME].register()
        return True


def become(name: str, folder: str) -> None:
    """Makes a name a second name of the package ``fairseq_expire``.

    Args:
        name: the name under which ``folder`` is being imported.
        folder: a folder of this package that has another name.
    Raises:
        ImportError: Python finds another copy of the package under its own name.
    """
    package = sys.modules.get(NAME) or _import(folder)
    _check_same(folder, os.path.dirname(package.__file__))
    if is_loading():
        package.register()
        for part in SCANNED:
            for module in pkgutil.iter_modules([os.path.join(folder, part)]):
                importlib.import_module(f"{NAME}.{part}.{module.name}")
    for loaded, module in list(sys.modules.items()):
        if loaded == NAME or loaded.startswith(f"{NAME}."):
            sys.modules[name + loaded[len(NAME) :]] = module


def _import(folder: str) -> ModuleType:
    """Imports the package that Python finds under its own name; where it finds none, the one in ``folder``."""
    spec: ModuleSpec | None = importlib.util.find_spec(NAME)
    if spec is not None and spec.origin is not None:
        # Before it registers anything.
        _check_same(folder, os.path.dirname(spec.origin))
        return importlib.import_module(NAME)
    spec = importlib.util.spec_from_file_location(
        NAME, os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[NAME]
        raise
    return module


def _check_same(folder: str, other: str) -> None:
    if os.path.realpath(folder) != os.path.realpath(other):
        raise ImportError(_two_copies(folder, other))


def _two_copies(path: str, other: str) -> str:
    return (
        f"--user-dir {path} is a copy of {NAME} beside the one in {other}, which Python finds first, and fairseq can "
        f"register only one; give --user-dir {other}, or remove that one (pip uninstall fairseq-expire, if it is "
        f"installed) and name the copy's folder {NAME}"
    )
