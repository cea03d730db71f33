"""The allowed imports between the packages: nothing upward, nothing in a circle, fairseq only where it is needed."""

import ast
import os
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "fairseq_expire"
NAME = "fairseq_expire"

# A part of the package (a file or a folder; the longest name counts), and the parts that it may import. All may import
# the package itself, for its version and `register`. One import is by name only: `register` imports the tasks, and
# models and criterions call it when all of theirs is imported, since one without the others is of no use to fairseq.
MAY_IMPORT = {
    "modules": [],
    "modules.growable_buffer": [],
    "modules.visibility": [],
    "modules.borders": [],
    "modules.memory": ["modules.growable_buffer", "modules.borders"],
    "modules.attention": ["modules.visibility"],
    "modules.memory_budget": ["modules.memory"],
    "modules.policies": ["modules.visibility", "modules.memory", "modules.memory_budget", "modules.borders"],
    "modules.layer": [
        "modules.visibility", "modules.memory", "modules.attention", "modules.policies", "modules.linear",
        "modules.borders",
    ],
    "modules.transformer": ["modules.memory", "modules.policies", "modules.layer", "modules.borders"],
    "files": [],
    "command_line": [],
    "tokenizers": ["files"],
    "inference": ["modules", "tokenizers", "files"],
    "fairseq_version": [],
    "fairseq_patches.__init__": ["fairseq_patches"],
    "fairseq_patches.stray_lines": [],
    "fairseq_patches.user_dir": [],
    "requires_fairseq": ["fairseq_version", "fairseq_patches.stray_lines"],
    "corpora": ["tokenizers", "files", "command_line", "requires_fairseq"],
    "streaming": ["modules", "tokenizers", "files", "requires_fairseq"],
    "fairseq_patches": ["modules", "tokenizers", "files", "inference", "streaming"],
    "models": ["modules", "tokenizers", "streaming", "fairseq_patches", "requires_fairseq"],
    "criterions": ["modules", "streaming", "fairseq_patches", "requires_fairseq"],
    "tasks": [
        "modules", "tokenizers", "files", "inference", "streaming", "fairseq_patches", "models", "criterions",
        "requires_fairseq",
    ],
    "export": ["inference", "command_line"],
    "__init__": ["inference"],
}  # fmt: skip
# The parts that may import fairseq, or omegaconf and Hydra, which come with it. The files of corpora read or write a
# file format of fairseq's own.
MAY_IMPORT_FAIRSEQ = [
    "streaming", "fairseq_patches", "models", "criterions", "tasks", "fairseq_version",
    "corpora.binarize", "corpora.verify", "corpora.split_files", "corpora.generated", "corpora.answers",
]  # fmt: skip
NEVER_FAIRSEQ = ["fairseq_patches.__init__", "fairseq_patches.user_dir", "fairseq_patches.stray_lines"]
FAIRSEQ = {"fairseq", "fairseq_cli", "omegaconf", "hydra"}


def name_of(path):
    """``modules.memory`` of a file; ``modules.__init__`` of a package."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


FILES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def only_for_types(tree):
    """The nodes under ``if TYPE_CHECKING``."""
    return {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }


def imports_of(path, *, types=True):
    """The modules that a file imports anywhere, by their whole names; a package stands for its ``__init__``."""
    tree = ast.parse(path.read_text())
    left_out = set() if types else only_for_types(tree)
    found = set()
    for node in ast.walk(tree):
        if node in left_out:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if is_module(inner) else node.module)
    return found


def is_module(name):
    path = PACKAGE.parent / name.replace(".", os.sep)
    return name.startswith(f"{NAME}.") and (path.is_dir() or path.with_suffix(".py").is_file())


def ours(names):
    """Those of this package, as in :data:`FILES`."""
    inner = {name.removeprefix(NAME).removeprefix(".") for name in names if name.split(".")[0] == NAME}
    return {name if name in FILES else f"{name}.__init__".removeprefix(".") for name in inner}


def part_of(name):
    """The row of :data:`MAY_IMPORT` that a module belongs to."""
    rows = [row for row in MAY_IMPORT if name == row or name.startswith(f"{row}.")]
    assert rows, f"tests/test_layers.py has no row for {name}"
    return max(rows, key=len)


def within(name, parts):
    return any(name == part or name.startswith(f"{part}.") for part in parts)


@pytest.mark.parametrize("name", FILES)
def test_imports_follow_the_table(name):
    part = part_of(name)
    imported = ours(imports_of(FILES[name])) - {"__init__"}
    wrong = sorted(other for other in imported if not within(other, [part, *MAY_IMPORT[part]]))
    assert not wrong, f"{name} imports {', '.join(wrong)}; {part} may import {', '.join(MAY_IMPORT[part]) or 'nothing'}"


@pytest.mark.parametrize("name", FILES)
def test_fairseq_is_imported_only_where_it_may_be(name):
    if within(name, MAY_IMPORT_FAIRSEQ) and name not in NEVER_FAIRSEQ:
        return
    theirs = sorted(other for other in imports_of(FILES[name]) if other.split(".")[0] in FAIRSEQ)
    assert not theirs, f"{name} imports {', '.join(theirs)}"


def test_the_table_has_no_row_for_what_is_not_there():
    parts = [*MAY_IMPORT, *MAY_IMPORT_FAIRSEQ, *NEVER_FAIRSEQ, *(part for row in MAY_IMPORT.values() for part in row)]
    for part in parts:
        assert any(within(name, [part]) for name in FILES), part


def test_no_module_imports_itself_through_others():
    imports = {name: ours(imports_of(path, types=False)) for name, path in FILES.items()}
    done, open_path = set(), []

    def visit(name):
        assert name not in open_path, " -> ".join([*open_path[open_path.index(name) :], name])
        if name in done:
            return
        open_path.append(name)
        for other in sorted(imports[name]):
            visit(other)
        open_path.pop()
        done.add(name)

    for name in FILES:
        visit(name)
