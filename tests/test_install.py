"""What an installation promises without fairseq: what works, and one sentence for what does not, or for a wrong fairseq."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fairseq_expire
from fairseq_expire import fairseq_version

ROOT = Path(__file__).parents[1]


def python(*arguments, cwd, search=()):
    """Runs Python in folder ``cwd``, with only ``search`` on PYTHONPATH."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, search)), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


def test_modules_work_without_fairseq(tmp_path):
    script = (
        "import sys; sys.modules['fairseq'] = None; import fairseq_expire.modules; print(fairseq_expire.__version__)"
    )
    done = python("-c", script, cwd=tmp_path, search=[ROOT])
    assert done.stdout.strip() == fairseq_expire.__version__, done.stderr


WITHOUT = "import sys; sys.modules['fairseq'] = None; "


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
def test_what_needs_fairseq_says_so(tmp_path, module):
    done = python("-c", f"{WITHOUT}import fairseq_expire.{module}", cwd=tmp_path, search=[ROOT])
    *_, last = done.stderr.strip().splitlines()
    assert last.startswith("ImportError: this part of fairseq_expire needs fairseq, ")
    assert "During handling" not in done.stderr


@pytest.mark.parametrize("script", ["text", "enwik8", "pg19", "wikitext103"])
def test_scripts_that_need_fairseq_say_so_in_one_line(tmp_path, script):
    run = f"{WITHOUT}import runpy; runpy.run_path({str(ROOT / 'data_prep' / script)!r} + '.py', run_name='__main__')"
    done = python("-c", run, cwd=tmp_path, search=[ROOT])
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
            " aarch64; fairseq_expire.modules and fairseq_expire.load of an export work here",
        ),
        ((3, 12), "darwin", "arm64", " arm64; fairseq_expire.modules"),
        ((3, 12), "win32", "AMD64", " AMD64; fairseq_expire.modules"),
    ],
)
def test_the_sentence_says_what_can_be_done(monkeypatch, version, system, machine, words):
    monkeypatch.setattr(sys, "version_info", (*version, 1, "final", 0))
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(fairseq_version.platform, "machine", lambda: machine)
    assert words in fairseq_version.absence()


@pytest.mark.parametrize(
    ["source", "found"],
    [
        pytest.param(
            "raise ValueError('mutable default')", "cannot be imported (ValueError: mutable default)", id="broken"
        ),
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
