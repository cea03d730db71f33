"""Downloads from a server on the loopback address that behaves as servers do, well or badly."""

import hashlib
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import pytest

from fairseq_expire.corpora.download import RemoteFile, fetch

CONTENT = bytes(range(251)) * 4000


class Handler(BaseHTTPRequestHandler):
    """Each path is a way to behave. The server records the requests."""

    def do_GET(self):
        server = self.server
        begins = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-")) if "Range" in self.headers else 0
        with server.lock:
            server.asked.append((self.path, begins))
            asked_before = sum(path == self.path for path, _ in server.asked) - 1
        way = self.path.split("/")[1]
        if way == "refuses" and self.headers["User-Agent"].startswith("python"):
            self.send_error(403)
            return
        if way == "missing":
            self.send_error(404)
            return
        if way == "always_busy" or (way == "busy" and asked_before < 2):
            self.send_error(503)
            return
        content = {"lies": CONTENT[::-1], "short": CONTENT[:1000], "long": CONTENT + b"x"}.get(way, CONTENT)
        if way == "no_ranges":
            begins = 0
        if begins >= len(content):
            self.send_error(416)
            return
        content = content[begins:]
        self.send_response(206 if begins else 200)
        if way not in ("no_length", "endless"):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if way == "truncates":
            content = content[:300_000]
        if way == "no_length":
            content = content[:400_000]
        if way == "endless":
            content = content + bytes(1_000_000)
        if way == "nothing":
            content = b""
        with suppress(ConnectionError):
            self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def running():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.lock = threading.Lock()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture
def server(running):
    running.asked = []
    running.url = f"http://127.0.0.1:{running.server_port}"
    return running


def file(server, *ways, name="file", content=CONTENT):
    sha256 = hashlib.sha256(content).hexdigest()
    return RemoteFile(
        name=name, urls=tuple(f"{server.url}/{way}/{name}" for way in ways), size=len(content), sha256=sha256
    )


def get(remote, folder, **kwargs):
    [path] = fetch([remote], folder, back_off=(0.0, 0.0), **kwargs)
    assert path.read_bytes() == CONTENT
    assert sorted(path.name for path in folder.iterdir()) == ["file"]
    return path


@pytest.mark.parametrize("way", ["plain", "refuses", "busy", "truncates", "no_length", "no_ranges"])
def test_a_file_comes_from_servers_of_all_kinds(tmp_path, server, way):
    get(file(server, way), tmp_path)
    requests = {"busy": 3, "truncates": 4, "no_length": 3}.get(way, 1)
    assert len(server.asked) == requests


def test_a_truncated_file_resumes_where_it_ended(tmp_path, server):
    get(file(server, "truncates"), tmp_path)
    begins = [begins for _, begins in server.asked]
    # The last part that was read when the connection broke may be lost.
    assert begins[0] == 0 and all(200_000 < two - one <= 300_000 for one, two in pairwise(begins))


@pytest.mark.parametrize("way, begins", [("plain", [5000]), ("no_ranges", [5000])])
def test_a_part_of_an_earlier_run_is_resumed(tmp_path, server, way, begins):
    (tmp_path / "file.part").write_bytes(CONTENT[:5000])
    get(file(server, way), tmp_path)
    assert [begins for _, begins in server.asked] == begins


def test_a_part_of_another_file_is_discarded(tmp_path, server):
    (tmp_path / "file.part").write_bytes(bytes(5000))
    get(file(server, "plain"), tmp_path)
    assert [begins for _, begins in server.asked] == [5000, 0]


def test_a_complete_part_is_only_renamed(tmp_path, server):
    (tmp_path / "file.part").write_bytes(CONTENT)
    get(file(server, "plain"), tmp_path)
    assert server.asked == []


@pytest.mark.parametrize("way", ["missing", "always_busy", "lies", "short", "long", "endless", "nothing"])
def test_the_mirror_is_asked_after_an_address_that_fails(tmp_path, server, way):
    get(file(server, way, "plain"), tmp_path)
    assert server.asked[-1] == ("/plain/file", 0) and server.asked[0][0] == f"/{way}/file"
    # Only temporary failures are tried again.
    assert len(server.asked) == 1 + (3 if way in ("always_busy", "nothing") else 1)


@pytest.mark.parametrize(
    "way, reason",
    [
        ("missing", "answered 404 Not Found"),
        ("always_busy", "answered 503 Service Unavailable"),
        (
            "lies",
            f"gave a file with the SHA-256 {hashlib.sha256(CONTENT[::-1]).hexdigest()}, "
            f"expected {hashlib.sha256(CONTENT).hexdigest()}; it was deleted",
        ),
        ("short", "has 1000 bytes, expected 1004000"),
        ("long", "has 1004001 bytes, expected 1004000"),
        ("endless", "has more than the expected 1004000 bytes"),
    ],
)
def test_the_error_says_in_one_line_what_to_do(tmp_path, server, way, reason):
    remote = file(server, way)
    with pytest.raises(ValueError) as caught:
        get(remote, tmp_path)
    message = str(caught.value)
    assert f"{remote.urls[0]}: {reason}" in message and "\n" not in message
    for part in (remote.urls[0], "1004000 bytes", remote.sha256, f"put it at {tmp_path / 'file'}", "--from"):
        assert part in message
    assert list(tmp_path.iterdir()) == []


def test_without_a_network(tmp_path):
    remote = RemoteFile("file", ("http://no-such-host.invalid/file", "http://127.0.0.1:9/file"), 3, "ab" * 32)
    with pytest.raises(
        ValueError, match=r"no-such-host.invalid/file: no such host, or no network; http://127.0.0.1:9/file: "
    ):
        get(remote, tmp_path)


def test_only_missing_files_are_downloaded(tmp_path, server):
    files = [file(server, "truncates", name=f"{folder}/{number}") for folder in "ab" for number in range(10)]
    done = []
    fetch(files, tmp_path, at_once=8, back_off=(0.0, 0.0), on_progress=lambda name, num_bytes: done.append(num_bytes))
    assert sum(done) == 20 * len(CONTENT) and all((tmp_path / one.name).read_bytes() == CONTENT for one in files)
    (tmp_path / "b/3").unlink()
    server.asked.clear()
    assert fetch(files, tmp_path, at_once=8, back_off=(0.0,)) == [tmp_path / one.name for one in files]
    assert {path for path, _ in server.asked} == {"/truncates/b/3"}


def test_many_failures_give_one_error(tmp_path, server):
    files = [file(server, "missing", name=f"{number}") for number in range(20)]
    with pytest.raises(ValueError, match=r"answered 404 .*; 19 more files of 20 are still missing$"):
        fetch(files, tmp_path, at_once=1, back_off=())
    assert len(server.asked) < 20


def test_one_failure_does_not_stop_the_others(tmp_path, server):
    files = [file(server, "missing" if number == 3 else "plain", name=f"{number}") for number in range(20)]
    with pytest.raises(ValueError, match=r"^3 could not be downloaded .*--from$"):
        fetch(files, tmp_path, at_once=2, back_off=())
    assert {path.name for path in tmp_path.iterdir()} == {str(number) for number in range(20)} - {"3"}


def test_a_wrong_file_is_deleted_with_a_warning_and_downloaded(tmp_path, server, caplog):
    (tmp_path / "file").write_bytes(CONTENT[::-1])
    get(file(server, "plain"), tmp_path)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert f"{tmp_path}/file: SHA-256" in caplog.text and "it is deleted, and downloaded again" in caplog.text


@pytest.mark.parametrize("way", ["short", "long", "endless"])
def test_an_address_with_another_file_does_not_destroy_a_part(tmp_path, server, way):
    (tmp_path / "file.part").write_bytes(CONTENT[:1000])
    with pytest.raises(ValueError):
        get(RemoteFile(**{**vars(file(server, "plain")), "urls": (f"{server.url}/{way}/file",)}), tmp_path)
    assert (tmp_path / "file.part").read_bytes() == CONTENT[:1000]


def test_the_room_on_the_disk_is_checked_first(tmp_path, server):
    remote = RemoteFile("file", (f"{server.url}/plain/file",), 10**18, "ab" * 32)
    with pytest.raises(ValueError, match=f"{tmp_path}: .* bytes free, and {10**18} are to be downloaded"):
        get(remote, tmp_path)
    assert server.asked == []
