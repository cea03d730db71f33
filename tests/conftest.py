"""Data and a trained checkpoint that the end-to-end tests share: real text, small enough for seconds; and what runs without fairseq."""

import argparse
import importlib.util
import inspect
import sys
import textwrap
from pathlib import Path

import commands
import pytest

TESTS = Path(__file__).parent
# Tests of what works without fairseq, which --without-fairseq runs alone: others fail at their imports, before any mark is seen.
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
# In those folders: the comparisons with fairseq's own modules and commands.
WITH_FAIRSEQ = [TESTS / "inference/test_load.py", TESTS / "modules/test_adaptive_vocabulary.py"]


def pytest_addoption(parser):
    parser.addoption(
        "--long", action="store_true", help="what is random is tried many more times, and every recipe runs"
    )
    parser.addoption(
        "--without-fairseq",
        action="store_true",
        help="only the tests of what works without fairseq, where there is none",
    )


def pytest_configure(config):
    """Tests are left out only where fairseq is missing, and only if that was asked for."""
    there = importlib.util.find_spec("fairseq") is not None
    if there and config.getoption("--without-fairseq"):
        raise pytest.UsageError(
            "--without-fairseq leaves out tests that can run here, where fairseq is installed: leave it out"
        )
    if not there and not config.getoption("--without-fairseq"):
        raise pytest.UsageError("most tests need fairseq, which is not installed: make test; or give --without-fairseq")
    for path in [*WITHOUT_FAIRSEQ, *WITH_FAIRSEQ]:
        if not path.exists():
            raise pytest.UsageError(f"{path}, which tests/conftest.py names, is not there: correct it")


def pytest_ignore_collect(collection_path, config):
    if not config.getoption("--without-fairseq") or not collection_path.name.startswith("test_"):
        return None
    runs = any(collection_path.is_relative_to(path) for path in WITHOUT_FAIRSEQ) and collection_path not in WITH_FAIRSEQ
    return None if runs else True


@pytest.fixture(scope="session")
def long(request):
    """Whether the long mode was asked for."""
    return request.config.getoption("--long")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Three files of real text: code and prose of the standard library."""
    folder = tmp_path_factory.mktemp("corpus")
    source = inspect.getsource(argparse)
    (folder / "train.txt").write_text(source[:60000])
    (folder / "valid.txt").write_text(source[60000:64001])
    (folder / "test.txt").write_text(inspect.getsource(textwrap)[:3001])
    return folder


def prepare(corpus, dest, level="bytes"):
    files = [part for split in ("train", "valid", "test") for part in (f"--{split}", corpus / f"{split}.txt")]
    commands.run(sys.executable, commands.ROOT / "data_prep" / "text.py", "--level", level, "--dest", dest, *files)
    return dest


@pytest.fixture(scope="session")
def data_bin(corpus, tmp_path_factory):
    return prepare(corpus, tmp_path_factory.mktemp("data") / "bytes")


@pytest.fixture(scope="session")
def trained(data_bin, tmp_path_factory):
    """(save folder, output) of a short training run with a validation after every 10 updates."""
    folder = tmp_path_factory.mktemp("trained")
    return folder, commands.train(data_bin, folder, "--validate-interval-updates", "10", updates=40)


@pytest.fixture(scope="session")
def checkpoint(trained):
    return trained[0] / "checkpoint_last.pt"
