"""Options of pytest, and the data and the trained checkpoint that many tests share: real text, but little of it."""

import argparse
import importlib.util
import inspect
import sys
import textwrap
from pathlib import Path

import commands
import pytest

TESTS = Path(__file__).parent
# The tests that --without-fairseq runs. A mark could not choose them, since the others fail when they are imported.
WITHOUT_FAIRSEQ = [
    TESTS / name
    for name in (
        "corpora/test_download.py",
        "test_files.py",
        "tokenizers/test_manifest.py",
        "corpora/test_sources.py",
        "tokenizers/test_chunks.py",
        "corpora/test_workers.py",
        "inference",
        "modules",
        "test_golden.py",
        "test_install.py",
    )
]
# Files in these folders that compare with fairseq's own modules and commands.
WITH_FAIRSEQ = [
    TESTS / "inference/test_load.py",
    TESTS / "modules/test_adaptive_vocabulary.py",
    TESTS / "modules/test_config.py",
]


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="try what is random many more times, and run every recipe")
    parser.addoption("--recipes", action="store_true", help="run every recipe, not only those that differ most")
    parser.addoption(
        "--without-fairseq",
        action="store_true",
        help="run only the tests that need no fairseq, where it is not installed",
    )


def pytest_configure(config):
    """Makes sure that no test is left out silently: --without-fairseq is for where fairseq is not installed."""
    there = importlib.util.find_spec("fairseq") is not None
    if there and config.getoption("--without-fairseq"):
        raise pytest.UsageError("--without-fairseq: fairseq is installed, so all tests can run; leave the option out")
    if not there and not config.getoption("--without-fairseq"):
        raise pytest.UsageError(
            "most tests need fairseq, which is not installed; use make test, or give --without-fairseq"
        )
    for path in [*WITHOUT_FAIRSEQ, *WITH_FAIRSEQ]:
        if not path.exists():
            raise pytest.UsageError(f"{path}: tests/conftest.py names it, but there is no such file; correct the list")


def pytest_ignore_collect(collection_path, config):
    if not config.getoption("--without-fairseq") or not collection_path.name.startswith("test_"):
        return None
    runs = any(collection_path.is_relative_to(path) for path in WITHOUT_FAIRSEQ) and collection_path not in WITH_FAIRSEQ
    return None if runs else True


@pytest.fixture(scope="session")
def long(request):
    """True in the long mode."""
    return request.config.getoption("--long")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A folder of three real texts: code and prose of Python's standard library."""
    folder = tmp_path_factory.mktemp("corpus")
    source = inspect.getsource(argparse)
    (folder / "train.txt").write_text(source[:60000])
    (folder / "valid.txt").write_text(source[60000:64001])
    (folder / "test.txt").write_text(inspect.getsource(textwrap)[:3001])
    return folder


def prepare(corpus, dest, level="bytes"):
    """Makes a data-bin of the corpus and returns its folder."""
    files = [part for split in ("train", "valid", "test") for part in (f"--{split}", corpus / f"{split}.txt")]
    commands.run(sys.executable, commands.ROOT / "data_prep" / "text.py", "--level", level, "--dest", dest, *files)
    return dest


@pytest.fixture(scope="session")
def data_bin(corpus, tmp_path_factory):
    return prepare(corpus, tmp_path_factory.mktemp("data") / "bytes")


@pytest.fixture(scope="session")
def trained(data_bin, tmp_path_factory):
    """Folder and output of a short training run that validates after every 10 updates."""
    folder = tmp_path_factory.mktemp("trained")
    return folder, commands.train(data_bin, folder, "--validate-interval-updates", "10", updates=40)


@pytest.fixture(scope="session")
def checkpoint(trained):
    return trained[0] / "checkpoint_last.pt"
