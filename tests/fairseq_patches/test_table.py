"""The table in the docstring of fairseq_patches: one row a module, each with a test that there is."""

import ast
import re

import pytest
from forks import ROOT

from fairseq_expire import fairseq_patches


def rows():
    """{module: (fairseq's code, what and why, test)}."""
    _, _, body, _ = re.split(r"^=+ .*=+$", fairseq_patches.__doc__, flags=re.MULTILINE)
    second, third = (match.start() for match in list(re.finditer(r"=+", border()))[1:])
    found, cells = {}, None
    for line in body.strip("\n").splitlines():
        module, code, text = line[:second].strip(), line[second:third].strip(), line[third:].strip()
        if module:
            cells = found[module] = ([], [])
        for cell, part in zip(cells, (code, text)):
            cell += [part] if part else []
    return {module: (code, text[:-1], text[-1]) for module, (code, text) in found.items()}


def border():
    return re.search(r"^=+ .*=+$", fairseq_patches.__doc__, flags=re.MULTILINE).group()


def names_of_tests():
    """The names of all functions in the test files."""
    trees = [ast.parse(path.read_text()) for path in (ROOT / "tests").rglob("test_*.py")]
    return [node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def test_every_module_has_a_row():
    files = {path.stem for path in (ROOT / "fairseq_expire/fairseq_patches").glob("*.py")} - {"__init__"}
    assert set(rows()) == files


NAMES = names_of_tests()


@pytest.mark.parametrize("module", rows())
def test_every_row_says_what_why_and_which_test(module):
    code, text, test = rows()[module]
    assert code and text
    assert NAMES.count(test) == 1, f"{test} is not the name of one test"
