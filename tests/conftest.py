"""Data and a trained checkpoint that the end-to-end tests share: real text, small enough for seconds."""

import inspect
import sys

import argparse
import textwrap

import pytest

import commands


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="what is random is tried many more times, and every recipe runs")


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
