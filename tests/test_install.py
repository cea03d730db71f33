"""Importing the package in fresh processes: without fairseq, beside it, and beside a wrong one."""

import sys

import pytest
from forks import ROOT, Forks

from fairseq_expire import fairseq_version

# Makes every import of fairseq fail, as where it is not installed.
WITHOUT = "import sys; sys.modules['fairseq'] = None; "


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Runs a script in a process that has imported torch and nothing else."""
    forks = Forks("import torch", tmp_path_factory.mktemp("forks"))
    yield forks.run
    forks.close()


IMPORTS = """
import logging, sys
logging.basicConfig(level=logging.DEBUG)

def check():
    theirs = {"fairseq", "fairseq_cli", "hydra", "omegaconf", "tensorboardX"}
    found = [name for name, module in sys.modules.items() if name.split(".")[0] in theirs and module is not None]
    assert not found, found
    assert not {"fairseq_expire.models", "fairseq_expire.tasks", "fairseq_expire.criterions"} & set(sys.modules)

import fairseq_expire; check()
import fairseq_expire.modules; check()
from fairseq_expire.modules import ExpireSpan; check()
fairseq_expire.load; check()
import fairseq_expire.inference; check()
import fairseq_expire.tokenizers.bound; check()
"""


@pytest.mark.parametrize("before", ["", WITHOUT], ids=["as_installed", "without_fairseq"])
def test_an_import_does_not_import_fairseq_and_prints_nothing(python, tmp_path, before):
    done = python(f"{before}\n{IMPORTS}", cwd=tmp_path, search=[ROOT])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_modules_import_little_more_than_torch_does(python, tmp_path):
    """Importing them costs little time: no other package, and few modules of Python itself and of numpy."""
    script = (
        "import sys, torch; before = set(sys.modules); import fairseq_expire.modules; print(*before, sep=','); "
        "print(*(set(sys.modules) - before), sep=',')"
    )
    done = python(script, cwd=tmp_path, search=[ROOT])
    assert done.returncode == 0, done.stderr
    before, more = (line.split(",") for line in done.stdout.splitlines())
    packages, more_packages = ({name.split(".")[0] for name in names} for names in (before, more))
    assert more_packages - packages - sys.stdlib_module_names == {"fairseq_expire"}
    ours = [name for name in more if name.split(".")[0] == "fairseq_expire"]
    assert len(ours) <= 50 and len(more) - len(ours) <= 30


@pytest.mark.parametrize(
    "module",
    [
        "models",
        "tasks",
        "criterions",
        "tasks.memory_caching_lm",
        "corpora.binarize",
        "streaming.blocks",
        "streaming.memory_pass",
    ],
)
def test_what_needs_fairseq_says_so(python, tmp_path, module):
    done = python(f"{WITHOUT}import fairseq_expire.{module}", cwd=tmp_path, search=[ROOT])
    *_, last = done.stderr.strip().splitlines()
    assert last.startswith("ImportError: this part of fairseq_expire needs fairseq, ")
    assert "During handling" not in done.stderr


def test_registering_without_fairseq_is_one_message(python, tmp_path):
    done = python(f"{WITHOUT}import fairseq_expire; fairseq_expire.register()", cwd=tmp_path, search=[ROOT])
    assert done.stderr.strip().splitlines()[-1].startswith("ImportError: this part of fairseq_expire needs fairseq, ")


SCRIPTS = sorted(path.stem for path in ROOT.glob("data_prep/*.py"))


def test_no_script_hides_a_module_of_python():
    """The folder of a script comes first where Python looks for modules."""
    assert not set(SCRIPTS) & set(sys.stdlib_module_names)


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_that_need_fairseq_say_so_in_one_line(python, tmp_path, script):
    run = f"{WITHOUT}import runpy; runpy.run_path({str(ROOT / 'data_prep' / script)!r} + '.py', run_name='__main__')"
    done = python(run, cwd=tmp_path, search=[ROOT])
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{script}.py: error: it needs fairseq, ")


@pytest.mark.parametrize(
    "version, system, machine, words",
    [
        ((3, 12), "linux", "x86_64", "which is not installed; type: pip install ve-fairseq=="),
        ((3, 10), "linux", "x86_64", "this is CPython 3.10 on "),
        (
            (3, 13),
            "linux",
            "x86_64",
            "of which there are builds for CPython 3.11 and 3.12 on Linux x86_64, and this is CPython 3.13",
        ),
        (
            (3, 11),
            "linux",
            "aarch64",
            " aarch64; fairseq_expire.modules and fairseq_expire.load work here",
        ),
        ((3, 12), "darwin", "arm64", " arm64; fairseq_expire.modules"),
        ((3, 12), "win32", "AMD64", " AMD64; fairseq_expire.modules"),
    ],
)
def test_the_message_tells_what_can_be_done(monkeypatch, version, system, machine, words):
    monkeypatch.setattr(sys, "version_info", (*version, 1, "final", 0))
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(fairseq_version.platform, "machine", lambda: machine)
    assert words in fairseq_version.absence()


OLD = "__version__ = '0.10.2'"
# How every version of fairseq imports a user directory.
OLD_UTILS = """
import importlib, os, sys

def import_user_module(args):
    parent, name = os.path.split(os.path.abspath(args.user_dir))
    sys.path.insert(0, parent)
    importlib.import_module(name)
"""
LOADED_BY_FAIRSEQ = (
    "import argparse; from fairseq.utils import import_user_module; "
    f"import_user_module(argparse.Namespace(user_dir={str(ROOT / 'fairseq_expire')!r}))"
)
REGISTERED = "import fairseq_expire; fairseq_expire.register()"


@pytest.mark.parametrize(
    "source, statement, found",
    [
        pytest.param(
            "raise ValueError('mutable default')",
            REGISTERED,
            "cannot be imported (ValueError: mutable default)",
            id="broken",
        ),
        pytest.param("import no_such_module", REGISTERED, "cannot be imported (ModuleNotFoundError: ", id="incomplete"),
        pytest.param(OLD, REGISTERED, "is version 0.10.2", id="old"),
        pytest.param(OLD, "import fairseq_expire.streaming.blocks", "is version 0.10.2", id="old_for_a_part"),
        pytest.param(OLD, LOADED_BY_FAIRSEQ, "is version 0.10.2", id="old_user_dir"),
    ],
)
def test_a_wrong_fairseq_is_one_message(python, tmp_path, source, statement, found):
    (tmp_path / "fairseq").mkdir()
    (tmp_path / "fairseq/__init__.py").write_text(source)
    (tmp_path / "fairseq/utils.py").write_text(OLD_UTILS)
    done = python(statement, cwd=tmp_path, search=[tmp_path, ROOT])
    *_, last = done.stderr.strip().splitlines()
    assert last.startswith("ImportError: fairseq_expire needs fairseq 0.12.3, but the one in")
    assert found in last
    assert last.endswith("pip install ve-fairseq==0.12.3")
    assert "During handling" not in done.stderr


@pytest.mark.parametrize("source", ["raise ValueError('mutable default')", OLD], ids=["broken", "old"])
def test_beside_a_wrong_fairseq_the_modules_work(python, tmp_path, source):
    (tmp_path / "fairseq").mkdir()
    (tmp_path / "fairseq/__init__.py").write_text(source)
    (tmp_path / "fairseq/utils.py").write_text(OLD_UTILS)
    script = "import fairseq_expire.modules, sys; fairseq_expire.load; assert 'fairseq' not in sys.modules"
    done = python(script, cwd=tmp_path, search=[tmp_path, ROOT])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_folder_called_fairseq_is_not_fairseq(python, tmp_path):
    (tmp_path / "fairseq").mkdir()
    script = (
        "import sys; sys.path[:] = [folder for folder in sys.path if 'site-packages' not in folder]; "
        "from fairseq_expire import fairseq_version; assert fairseq_version.folder() is None"
    )
    done = python(script, cwd=tmp_path, search=[ROOT])
    assert done.returncode == 0, done.stderr
