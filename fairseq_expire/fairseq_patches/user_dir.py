"""``--user-dir`` by any path or name: fairseq takes the last part of a path for the name of a package.

The package registers under one name, ``fairseq_expire``. A folder that is reached by another name, through a link or
because it was renamed, becomes a second name of that package, so that nothing is registered twice.
"""

import importlib
import importlib.util
import os
import pkgutil
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

NAME = "fairseq_expire"
# Packages of which fairseq imports every module, by the name that --user-dir has.
SCANNED = ("models", "tasks")


class Folders(list):
    """The package's ``__path__``, in which every path to one of its folders is found, not only the one it was imported by.

    fairseq asks ``path in package.__path__`` when the package is imported already, and otherwise advises to rename a folder,
    which does not help.

    Raises:
        ImportError: a path of another copy of the package is asked for; it names both.
    """

    def __contains__(self, path: object) -> bool:
        if not isinstance(path, str):
            return False
        # An editable install leaves a folder beside fairseq's that holds no code.
        if not os.path.isfile(os.path.join(path, "__init__.py")):
            return True
        if any(os.path.realpath(path) == os.path.realpath(folder) for folder in self):
            return True
        raise ImportError(_two_copies(path, self[0]))


def become(name: str, folder: str) -> None:
    """Makes ``name``, by which ``folder`` is being imported, a second name of ``fairseq_expire`` with all modules that fairseq asks for.

    Raises:
        ImportError: Python finds another copy of the package under its own name.
    """
    package = sys.modules.get(NAME) or _import(folder)
    _check_same(folder, os.path.dirname(package.__file__))
    for part in SCANNED:
        if os.path.isdir(os.path.join(folder, part)) and f"{NAME}.{part}" in sys.modules:
            for module in pkgutil.iter_modules([os.path.join(folder, part)]):
                importlib.import_module(f"{NAME}.{part}.{module.name}")
    for loaded, module in list(sys.modules.items()):
        if loaded == NAME or loaded.startswith(f"{NAME}."):
            sys.modules[name + loaded[len(NAME) :]] = module


def _import(folder: str) -> ModuleType:
    """The package that Python finds under its own name; where it finds none, the one in ``folder``."""
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
        f"--user-dir {path} is a copy of {NAME} beside the one in {other}, which Python finds first, and fairseq can register only one; "
        f"give --user-dir {other}, or remove that one (pip uninstall fairseq-expire, if it is installed) and name the copy's folder {NAME}"
    )
