"""Scripts in processes as good as fresh: forks of one process that has imported slow packages, and none of this one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).parents[1]

SERVER = """
import json, os, sys, traceback
{preload}

# What a worktree or an editable install puts on the path.
sys.path[:] = [path for path in sys.path if not os.path.isfile(os.path.join(path, "fairseq_expire", "__init__.py"))]
assert not [name for name in sys.modules if name.startswith("fairseq_expire")]
for line in sys.stdin:
    case = json.loads(line)
    process = os.fork()
    if process == 0:
        status = 1
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(case[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.chdir(case["cwd"])
        sys.path[:0] = case["search"]
        try:
            exec(compile(case["script"], "<script>", "exec"), {{"__name__": "__main__"}})
            status = 0
        except SystemExit as ended:
            status = ended.code or 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""


class Forks:
    """Args:
    preload: statements that the first process runs; their imports are not repeated.
    folder: for what is printed.
    """

    def __init__(self, preload, folder):
        self.folder = folder
        # -P: without the current folder on sys.path, as in a script.
        self._server = subprocess.Popen(
            [sys.executable, "-P", "-c", SERVER.format(preload=preload)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, env={**os.environ, "PYTHONPATH": "", "CUDA_VISIBLE_DEVICES": ""},
        )  # fmt: skip

    def run(self, script, *, cwd, search=()):
        """Runs a script in ``cwd``, with ``search`` first on sys.path. Returns what subprocess.run would."""
        files = {"out": str(self.folder / "stdout"), "err": str(self.folder / "stderr")}
        case = {"script": script, "cwd": str(cwd), "search": [str(path) for path in search], **files}
        self._server.stdin.write(json.dumps(case) + "\n")
        self._server.stdin.flush()
        status = int(self._server.stdout.readline())
        stdout, stderr = (Path(path).read_text() for path in files.values())
        return SimpleNamespace(returncode=status, stdout=stdout, stderr=stderr)

    def close(self):
        self._server.stdin.close()
        self._server.wait()
