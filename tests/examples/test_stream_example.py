"""The example without fairseq learns, and runs where fairseq is not installed."""

import os
import subprocess
import sys

import stream
import torch


def test_it_learns_its_text():
    torch.manual_seed(0)
    bits = stream.train(stream.ByteModel(), b"forget what expires, " * 40, epochs=4, log=lambda line: None)
    assert bits[0] > 2 > 1 > bits[-1]


def test_it_needs_no_fairseq():
    code = (
        "import sys\n"
        "sys.modules['fairseq'] = None\n"  # To Python, a package that is not installed.
        f"sys.path.insert(0, {os.path.dirname(stream.__file__)!r})\n"
        "import stream\n"
        "stream.train(stream.ByteModel(), b'one block or two of text, for which no fairseq is needed', epochs=1)\n"
        "assert not any(name.startswith('fairseq.') for name in sys.modules)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "bits per byte" in run.stdout
