"""Starts Python scripts in processes that have torch and fairseq loaded already.

An import of torch and fairseq takes three to five seconds of CPU time, and the tests start hundreds of commands. A
server is a Python process that has loaded both, but nothing of fairseq_expire. For each command it forks a child. The
child runs the script as ``__main__`` with the arguments, folder, environment and standard streams that it is given, and
ends as the interpreter does. ``test_fork_server.py`` compares such children with fresh interpreters.

A connection to the server's socket starts one command. The client sends the request with three file descriptors, and
receives the child's process id and, when the child has ended, its exit code.

This file is also a program:
    fork_server.py serve LISTENING_FD         is the server; it ends, with its children, when its standard input closes
    fork_server.py run SOCKET ARGUMENTS...    runs one command, for shell scripts
"""

import atexit
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import ExitStack, suppress
from pathlib import Path

# What fairseq's commands load. fairseq_cli stays out, since it sets up logging when it is imported.
PRELOADED = (
    "cProfile",
    "requests",
    "safetensors.torch",
    "sentencepiece",
    "tqdm",
    "torch._dynamo",
    "torch.distributed.fsdp",
    "torch.profiler",
    "torch.utils.checkpoint",
    "fairseq.model_parallel.megatron_trainer",
    "fairseq.sequence_generator",
    "fairseq.sequence_scorer",
    "fairseq.trainer",
    "tensorboardX",
)
# Packages that a child has loaded, but sees only after it has imported them.
HIDDEN = ("fairseq", "hydra", "omegaconf", "tensorboardX")
# A server serves the commands whose environment agrees with its own in these variables, which are read when Python or a
# library starts. PYTHONPATH may differ, as long as it holds none of the packages that are loaded.
READ_AT_START = ("CUDA_", "GOMP_", "KMP_", "LANG", "LC_", "LD_", "MKL_", "OMP_", "PYTHON", "TORCH_")
# Bytes of a request or an answer, at most.
LONGEST = 1 << 20

_servers = {}
_lock = threading.Lock()


class Process:
    """A child of a server, with the interface of :class:`subprocess.Popen`."""

    def __init__(self, connection, args):
        self.args, self.returncode = args, None
        self._connection = connection
        self.pid = int(self._receive())

    def _receive(self):
        answer = self._connection.recv(LONGEST)
        if not answer:
            raise RuntimeError("the fork server has ended; its standard error says why")
        return answer

    def wait(self, timeout=None):
        if self.returncode is None:
            self._connection.settimeout(timeout)
            try:
                self.returncode = int(self._receive())
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(self.args, timeout) from None
            self._connection.close()
        return self.returncode

    def poll(self):
        with suppress(subprocess.TimeoutExpired):
            self.wait(timeout=0)
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def can_run(command):
    """True for a Python program that can be forked.

    That is ``python SCRIPT.py ...`` or ``python -c CODE ...``, with no option of Python but ``-P``, or a script that
    names the interpreter of this process in its first line.
    """
    if not hasattr(os, "pidfd_open"):
        return False
    if command[0] == sys.executable:
        first = command[2 if command[1:2] == ["-P"] else 1 :][:1]
        return first == ["-c"] or first[0].endswith(".py") if first else False
    try:
        with open(command[0], "rb") as file:
            return file.readline().decode("latin-1").strip() == f"#!{sys.executable}"
    except OSError:
        return False


def start(command, *, cwd=None, env=None, stdin=subprocess.DEVNULL, stdout=None, stderr=None, start_new_session=False):
    """Starts a command that :func:`can_run` accepts.

    Args:
        command: strings.
        stdin, stdout, stderr: open files, or as for :class:`subprocess.Popen`, but no pipes.
    Returns:
        a :class:`Process`.
    """
    env = dict(os.environ if env is None else env)
    arguments = command[1:] if command[0] == sys.executable else command
    with open(os.devnull, "r+b") as null:

        def number(stream, default):
            if stream is None:
                return default
            if stream == subprocess.DEVNULL:
                return null.fileno()
            return stream if isinstance(stream, int) else stream.fileno()

        out = number(stdout, 1)
        streams = [number(stdin, 0), out, out if stderr == subprocess.STDOUT else number(stderr, 2)]
        connection = _connect(socket_of(env), arguments, cwd or os.getcwd(), env, streams, start_new_session)
        return Process(connection, command)


def run(command, *, given=b"", cwd=None, env=None):
    """Runs a command to its end.

    Args:
        given: bytes of the standard input.
    Returns:
        a :class:`subprocess.CompletedProcess` with the output as bytes.
    """
    with ExitStack() as stack:
        stdin, *outputs = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(3))
        stdin.write(given)
        stdin.seek(0)
        code = start(command, cwd=cwd, env=env, stdin=stdin, stdout=outputs[0], stderr=outputs[1]).wait()
        for file in outputs:
            file.seek(0)
        return subprocess.CompletedProcess(command, code, *(file.read() for file in outputs))


def write_stand_in(path, script, env):
    """Writes an executable file that runs a Python script through the server, for shell scripts to call.

    Args:
        env: the environment that it will be called in, as far as ``READ_AT_START`` names it.
    """
    command = [sys.executable, "-I", "-S", __file__, "run", socket_of(env), str(script)]
    path.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    path.chmod(0o755)


def socket_of(env):
    """Path of the socket of the server for an environment. Starts the server if there is none."""
    env = {name: value for name, value in env.items() if name != "PYTHONPATH"}
    key = tuple(sorted((name, value) for name, value in env.items() if name.startswith(READ_AT_START)))
    with _lock:
        if key not in _servers:
            folder = tempfile.TemporaryDirectory(prefix="fork")
            path = f"{folder.name}/socket"
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
                listening.bind(path)
                listening.listen(64)
                # The server lives as long as this process, which alone holds the other end of its standard input.
                process = subprocess.Popen(
                    [sys.executable, __file__, "serve", str(listening.fileno())],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    env=env,
                    pass_fds=[listening.fileno()],
                )
            _servers[key] = path, process, folder
            atexit.register(_end, process)
        return _servers[key][0]


def _end(server):
    server.stdin.close()
    server.wait()


def _connect(path, arguments, cwd, env, streams, start_new_session):
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(path)
    request = {"arguments": arguments, "cwd": str(cwd), "env": env, "start_new_session": start_new_session}
    socket.send_fds(connection, [json.dumps(request).encode()], streams)
    return connection


class HiddenModules:
    """Takes loaded packages out of sys.modules, and puts each back when it is imported, with all its modules."""

    def __init__(self, names):
        self._modules = {name: sys.modules.pop(name) for name in [*sys.modules] if name.partition(".")[0] in names}
        sys.meta_path.insert(0, self)

    def find_spec(self, name, path=None, target=None):
        import copy

        if name not in self._modules or "." in name:
            return None
        spec = copy.copy(self._modules[name].__spec__)
        spec.loader = self
        return spec

    def create_module(self, spec):
        module = self._modules[spec.name]
        self._spec = module.__spec__
        return module

    def exec_module(self, module):
        import logging

        name = module.__name__
        module.__spec__ = self._spec
        # fairseq imports the others.
        names = HIDDEN if name == "fairseq" else [name]
        found = {other: value for other, value in self._modules.items() if other.partition(".")[0] in names}
        sys.modules.update({other: value for other, value in found.items() if other not in sys.modules})
        if name == "fairseq":
            # As fairseq does when it is imported.
            logging.basicConfig(level=logging.DEBUG)


def preload():
    import gc
    import importlib
    import logging
    import warnings

    # With a handler there, fairseq sets up no logging. In a child, it does so when it is imported: see HiddenModules.
    handler = logging.NullHandler()
    logging.root.addHandler(handler)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in PRELOADED:
            importlib.import_module(name)
    logging.root.removeHandler(handler)
    HiddenModules(HIDDEN)
    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"{threads} threads: a fork would lose all but one of them"
    # A collection would copy the memory that children share with the server.
    gc.collect()
    gc.freeze()


def serve(listening):
    """Forks a child for each request.

    Returns:
        the request, in each child. The server itself does not return.
    """
    import select

    poll = select.poll()
    poll.register(listening, select.POLLIN)
    poll.register(0, select.POLLIN)
    # File descriptors of the processes, each with its id and the connection of its client.
    children = {}
    while True:
        for fd, _ in poll.poll():
            if fd == 0:
                for child, _ in children.values():
                    os.kill(child, signal.SIGKILL)
                os._exit(0)
            elif fd == listening.fileno():
                connection, _ = listening.accept()
                message, streams, *_ = socket.recv_fds(connection, LONGEST, 3)
                child = os.fork() if message else None
                if child == 0:
                    request = json.loads(message)
                    if request["start_new_session"]:
                        os.setsid()
                    connection.send(str(os.getpid()).encode())
                    for number, stream in enumerate(streams):
                        os.dup2(stream, number)
                    for other, (_, client) in children.items():
                        os.close(other)
                        client.close()
                for stream in streams:
                    os.close(stream)
                if not child:
                    connection.close()
                if child == 0:
                    listening.close()
                    return request
                if child:
                    process = os.pidfd_open(child)
                    children[process] = child, connection
                    poll.register(process, select.POLLIN)
            else:
                child, connection = children.pop(fd)
                poll.unregister(fd)
                os.close(fd)
                _, status = os.waitpid(child, 0)
                # The client may have gone.
                with suppress(BrokenPipeError):
                    connection.send(str(os.waitstatus_to_exitcode(status)).encode())
                connection.close()


def open_standard_streams():
    """Opens the standard streams as the interpreter does, which looks at what kind of file each is."""
    import io

    for number, name in enumerate(("stdin", "stdout", "stderr")):
        mode, before = "rww"[number], getattr(sys, name)
        # PYTHONUNBUFFERED, as the server has seen it.
        unbuffered = before.write_through
        buffer = open(number, mode + "b", 0 if unbuffered and number else -1, closefd=False)  # noqa: SIM115
        (buffer if unbuffered and number else buffer.raw).name = f"<{name}>"
        line_buffering = not unbuffered and (number == 2 or buffer.isatty())
        stream = io.TextIOWrapper(buffer, before.encoding, before.errors, "\n", line_buffering, unbuffered)
        stream.mode = mode
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def become(request):
    """Makes this process what an interpreter is before it runs its program.

    Returns:
        the program and its globals.
    """
    import types

    open_standard_streams()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    # Python's own generator is seeded anew after a fork, NumPy's is not.
    sys.modules["numpy"].random.seed()
    main = types.ModuleType("__main__")
    main.__dict__.update(__builtins__=__builtins__, __annotations__={})
    sys.modules["__main__"] = main
    safe_path = request["arguments"][0] == "-P"
    path, *_ = arguments = request["arguments"][safe_path:]
    first = [] if safe_path else [""] if path == "-c" else [os.path.dirname(os.path.realpath(path))]
    given = filter(None, request["env"].get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:] = [*first, *dict.fromkeys([*map(os.path.abspath, given), *sys.path[1:]])]
    if path == "-c":
        sys.argv = ["-c", *arguments[2:]]
        return compile(arguments[1], "<string>", "exec"), main.__dict__
    sys.argv = arguments
    main.__dict__.update(__file__=path, __cached__=None)
    return compile(Path(path).read_bytes(), path, "exec"), main.__dict__


def run_for_shell(path, *arguments):
    """Runs a command and ends as it does."""
    connection = _connect(path, arguments, os.getcwd(), dict(os.environ), [0, 1, 2], False)
    code = Process(connection, arguments).wait()
    if code < 0:
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    if sys.argv[1] == "run":
        run_for_shell(*sys.argv[2:])
    # Children replace it in sys.modules, and what it holds has to live on.
    server = sys.modules["__main__"]
    preload()
    exec(*become(serve(socket.socket(fileno=int(sys.argv[2])))))
