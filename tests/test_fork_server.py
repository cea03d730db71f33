"""Commands forked from a loaded process (fork_server.py) do what they do in a fresh interpreter."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import commands
import fork_server
import pytest

SCRIPT = """
import atexit, os, sys
atexit.register(print, "at exit")
print(__name__, __file__, sys.argv, sys.path, os.getcwd(), sys.flags, sys.stdout.encoding, sys.stdin.read())
print(sorted(os.environ.items()))
print(sorted(name for name in sys.modules if name.startswith(("fairseq", "hydra", "omegaconf"))))
for stream in (sys.stdin, sys.stdout, sys.stderr, sys.__stdin__, sys.__stdout__, sys.__stderr__):
    print(stream, stream.errors, stream.line_buffering, stream.write_through, stream.buffer)
print("last", end="")
print("error", file=sys.stderr)
"""


def both(*command, **options):
    """The results of a forked command and of one in a fresh interpreter: exit code, output and errors."""
    assert fork_server.can_run([str(part) for part in command])
    found = [commands.result(*command, fresh=fresh, **options) for fresh in (False, True)]
    return [(done.returncode, done.stdout.decode(), done.stderr.decode()) for done in found]


def without_times(text):
    """A log without what depends on the clock."""
    text = re.sub(r"\d+-\d+-\d+ \d+:\d+:\d+", "", text)
    text = re.sub(r'"(\w+_)?(wps|ups|wall|train_wall)": "[^"]*"', "", text)
    return re.sub(r"[\d.]+ ?(s|seconds)\b|[\d.]+ tokens/s", "", text)


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def test_a_script_sees_the_same(script, tmp_path):
    options = {"given": b"input", "cwd": tmp_path, "env": commands.environment(MINE="1")}
    forked, fresh = both(sys.executable, script, "an argument", **options)
    assert forked == fresh
    code, output, _ = fresh
    assert code == 0 and "last" in output and "fairseq" not in output.splitlines()[2]


@pytest.mark.parametrize("options", [[], ["-P"]])
def test_code_on_the_command_line_sees_the_same(options, tmp_path):
    code = SCRIPT.replace("__file__", "globals().get('__file__')").replace("sys.flags, ", "")
    env = commands.environment(PYTHONPATH=f"{tmp_path}:folder:{commands.ROOT}:folder")
    forked, fresh = both(sys.executable, *options, "-c", code, "an argument", env=env)
    assert forked == fresh


@pytest.mark.parametrize(
    "ending",
    [
        "sys.exit(3)",
        "sys.exit('a sentence')",
        "os._exit(4)",
        "os.kill(os.getpid(), signal.SIGTERM)",
        "raise KeyboardInterrupt",
        "threading.Thread(target=lambda: (time.sleep(0.1), print('from a thread'))).start()",
    ],
)
def test_a_script_ends_the_same_way(script, ending):
    script.write_text(f"import os, signal, sys, threading, time\nprint('begins', flush=True)\n{ending}\n")
    forked, fresh = both(sys.executable, script)
    assert forked[:2] == fresh[:2]
    # A traceback also shows the lines of the server.
    assert forked[2].splitlines()[-1:] == fresh[2].splitlines()[-1:]


def test_an_error_ends_with_its_traceback(script):
    script.write_text("def fail():\n    raise ValueError('a sentence')\n\nfail()\n")
    forked, fresh = both(sys.executable, script)
    assert forked[0] == fresh[0] == 1
    assert forked[2].splitlines()[-5:] == fresh[2].splitlines()[-5:]


@pytest.mark.parametrize("module", ["fairseq", "fairseq_cli.train"])
def test_an_import_sets_up_the_same_logging(module):
    """fairseq sets up logging when it is imported, in a way that depends on what is imported first."""
    code = (
        f"import logging, sys, {module}\n"
        "print(logging.root.level, [(type(handler), handler.formatter._fmt) for handler in logging.root.handlers])\n"
        "print(sys.modules['fairseq'].__spec__.origin, sys.modules['fairseq'].__spec__.loader.name)\n"
        "print(sorted(name for name in sys.modules if name.startswith(('fairseq_cli', 'fairseq_expire'))))\n"
    )
    forked, fresh = both(sys.executable, "-c", code)
    assert forked[:2] == fresh[:2] and fresh[0] == 0


def test_a_package_that_is_hidden_from_a_script_is_missing():
    code = "import sys; sys.modules['fairseq'] = None; import fairseq.trainer"
    forked, fresh = both(sys.executable, "-c", code)
    assert forked[0] == fresh[0] == 1 and forked[2].splitlines()[-1] == fresh[2].splitlines()[-1]


def test_training_and_scoring_print_the_same(data_bin, tmp_path):
    outputs = []
    for fresh in (False, True):
        (tmp_path / "save").mkdir()
        common = ["--user-dir", commands.USER_DIR, "--task", "memory_caching_lm", "--cpu"]
        train = [
            commands.tool("fairseq-train"), data_bin, *common, "--arch", "expire_span_lm", *commands.MODEL,
            *commands.SPANS["expire_span_lm"], "--dropout", "0.1", "--criterion", "expire_span_loss",
            "--optimizer", "adam", "--tokens-per-sample", "32", "--batch-size", "8", "--max-update", "4",
            "--num-workers", "1", "--save-dir", "save", "--log-interval", "1", "--log-format", "json",
        ]  # fmt: skip
        score = [commands.tool("fairseq-eval-lm"), data_bin, *common, "--path", "save/checkpoint_last.pt"]
        done = [commands.result(*command, cwd=tmp_path, fresh=fresh) for command in (train, score)]
        assert [each.returncode for each in done] == [0, 0]
        outputs.append([without_times((each.stdout + each.stderr).decode()) for each in done])
        (tmp_path / "save").rename(tmp_path / f"save{fresh}")
    for forked, fresh in zip(*outputs):
        assert forked.splitlines() == fresh.splitlines()


def test_a_command_can_be_killed_with_all_its_processes(script, tmp_path):
    script.write_text(
        "import os, sys, time\nchild = os.fork()\nif child:\n    print(child, flush=True)\ntime.sleep(600)\n"
    )
    with open(tmp_path / "log", "w+") as log:
        process = commands.start(sys.executable, script, stdout=log, start_new_session=True)
        assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.01)
        end = time.monotonic() + 60
        while not (printed := (tmp_path / "log").read_text()):
            assert time.monotonic() < end
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == process.poll() == -signal.SIGKILL
    assert ended(int(printed))


def ended(process):
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            # What has ended stays until its parent asks.
            if Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


def test_a_server_ends_with_its_process_and_takes_its_children_along(script, tmp_path):
    script.write_text("import os, time\nprint(os.getpid(), os.getppid(), flush=True)\ntime.sleep(600)\n")
    client = (
        f"import sys, time; sys.path.insert(0, {str(Path(__file__).parent)!r}); import fork_server\n"
        f"fork_server.start([sys.executable, {str(script)!r}])\n"
        "time.sleep(600)\n"
    )
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen([sys.executable, "-c", client], stdout=log, env=commands.environment())
        end = time.monotonic() + 120
        while not (printed := (tmp_path / "log").read_text()):
            assert time.monotonic() < end
            time.sleep(0.05)
        process.kill()
        process.wait()
    assert all(ended(int(number)) for number in printed.split())


# Fails where a stream is taken for another kind of file than it is.
RECONFIGURE = "for stream in (sys.stdin, sys.stdout, sys.stderr): stream.reconfigure(encoding='utf-8')"


@pytest.mark.parametrize("ending, code", [("sys.exit(5)", 5), ("os.kill(os.getpid(), 9)", 128 + 9)])
def test_a_shell_script_can_use_the_server(script, tmp_path, ending, code):
    script.write_text(f"import os, sys\nprint(sys.argv[1:], sys.stdin.read(), flush=True)\n{RECONFIGURE}\n{ending}\n")
    (tmp_path / "tools").mkdir()
    env = commands.environment()
    fork_server.write_stand_in(tmp_path / "tools" / "tool", script, env)
    env["PATH"] = f"{tmp_path / 'tools'}{os.pathsep}{env['PATH']}"
    done = commands.result("sh", "-c", 'tool "$@"; exit $?', "sh", "an argument", "", given=b"input", env=env)
    assert (done.returncode, done.stdout) == (code, b"['an argument', ''] input\n")
