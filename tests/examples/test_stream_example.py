"""The example that needs no fairseq learns, and runs where there is none."""

import subprocess
import sys
from pathlib import Path

import torch

EXAMPLE = Path(__file__).parents[2] / "examples" / "quickstart" / "stream.py"


def test_learns_what_it_reads():
    sys.path.insert(0, str(EXAMPLE.parent))
    try:
        import stream
    finally:
        sys.path.remove(str(EXAMPLE.parent))
    torch.manual_seed(0)
    bits = stream.train(stream.ByteModel(), b"forget what expires, " * 40, epochs=4, log=lambda line: None)
    assert bits[0] > 2 > 1 > bits[-1]


def test_no_fairseq_is_needed():
    code = (
        "import sys\n"
        "sys.modules['fairseq'] = None\n"  # To Python, a package that isn't there.
        f"sys.path.insert(0, {str(EXAMPLE.parent)!r})\n"
        "import stream\n"
        "stream.train(stream.ByteModel(), b'one block or two of text, for which no fairseq is needed', epochs=1)\n"
        "assert not any(name.startswith('fairseq.') for name in sys.modules)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "bits per byte" in run.stdout
