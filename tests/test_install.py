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
    command = ["--user-dir", "fairseq_expire", "--task", "memory_caching_lm", "--arch", "expire_span_lm", "--help"]
    # -P: without it `-m` would put the current folder on sys.path, which the fairseq-train script does not.
    done = python("-P", "-m", "fairseq_cli.train", *command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@needs_install
@pytest.mark.parametrize(
    ["folder", "user_dir"],
    [
        pytest.param("elsewhere", "fairseq_expire", id="name"),
        pytest.param(ROOT, "fairseq_expire", id="name-in-checkout"),
        pytest.param(ROOT, "./fairseq_expire/", id="relative"),
        pytest.param("elsewhere", Path(fairseq_expire.__file__).parent, id="absolute"),
    ],
)
def test_user_dir_may_be_imported_already(tmp_path, folder, user_dir):
    script = (
        "import argparse, fairseq_expire, fairseq.utils\n"
        f"fairseq.utils.import_user_module(argparse.Namespace(user_dir={str(user_dir)!r}))\n"
    )
    done = python("-c", script, cwd=tmp_path if folder == "elsewhere" else folder)
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
