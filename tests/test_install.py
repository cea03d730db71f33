"""What an installation promises: fairseq finds the extension from any folder, and a missing or wrong fairseq is handled in a sentence."""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fairseq_expire

ROOT = Path(__file__).parents[1]


def is_installed():
    try:
        importlib.metadata.distribution("fairseq-expire")
    except importlib.metadata.PackageNotFoundError:
        return False
    return importlib.util.find_spec("fairseq") is not None


needs_install = pytest.mark.skipif(not is_installed(), reason="needs the extension and fairseq installed: make test")


def python(*arguments, cwd, search=()):
    """Runs Python in folder ``cwd``, with only ``search`` on PYTHONPATH."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, search)), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


@needs_install
def test_user_dir_is_found_from_any_folder(tmp_path):
    # Only the refusal of an unknown architecture lists those that are registered.
    # -P: without it `-m` would put the current folder on sys.path, which the fairseq-train script does not.
    done = python("-P", "-m", "fairseq_cli.train", "--user-dir", "fairseq_expire", "--arch", "no_such_arch", cwd=tmp_path)
    assert "invalid choice: 'no_such_arch'" in done.stderr
    assert "'expire_span_lm'" in done.stderr


@needs_install
def test_user_dir_may_be_imported_already(tmp_path):
    package = Path(fairseq_expire.__file__).parent
    script = f"""
import argparse, os
import fairseq_expire
from fairseq.utils import import_user_module

for folder, user_dir in [
    ({str(tmp_path)!r}, "fairseq_expire"),
    ({str(tmp_path)!r}, {str(package)!r}),
    ({str(package.parent)!r}, "fairseq_expire"),
    ({str(package.parent)!r}, "./fairseq_expire/"),
]:
    os.chdir(folder)
    import_user_module(argparse.Namespace(user_dir=user_dir))
"""
    done = python("-c", script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_modules_work_without_fairseq(tmp_path):
    script = "import sys; sys.modules['fairseq'] = None; import fairseq_expire.modules; print(fairseq_expire.__version__)"
    done = python("-c", script, cwd=tmp_path, search=[ROOT])
    assert done.stdout.strip() == fairseq_expire.__version__, done.stderr


@pytest.mark.parametrize(
    ["source", "found"],
    [
        pytest.param("raise ValueError('mutable default')", "cannot be imported (ValueError: mutable default)", id="broken"),
        pytest.param("import no_such_module", "cannot be imported (ModuleNotFoundError: ", id="incomplete"),
        pytest.param("__version__ = '0.10.2'", "is version 0.10.2", id="old"),
    ],
)
def test_a_wrong_fairseq_is_one_sentence(tmp_path, source, found):
    (tmp_path / "fairseq").mkdir()
    (tmp_path / "fairseq/__init__.py").write_text(source)
    done = python("-c", "import fairseq_expire", cwd=tmp_path, search=[tmp_path, ROOT])
    *_, last = done.stderr.strip().splitlines()
    assert last.startswith("ImportError: fairseq_expire needs fairseq 0.12.3, but the one in")
    assert found in last
    assert last.endswith("pip install ve-fairseq==0.12.3")
    assert "During handling" not in done.stderr


def test_a_folder_called_fairseq_is_not_fairseq(tmp_path):
    (tmp_path / "fairseq").mkdir()
    script = "import sys; sys.path[:] = [p for p in sys.path if 'site-packages' not in p]; import fairseq_expire"
    done = python("-c", script, cwd=tmp_path, search=[ROOT])
    assert done.returncode == 0, done.stderr
