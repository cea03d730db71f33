"""Downloads of files whose size and hash are known. They resume, and try again where an address fails."""

import hashlib
import logging
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import requests

from fairseq_expire import __version__
from fairseq_expire.corpora.compressed import compression, content_of
from fairseq_expire.files import existing_folder, file_sha256, naming_file_in_errors

# Some servers refuse the names that libraries of programming languages give themselves.
HEADERS = {"User-Agent": f"fairseq-expire/{__version__}", "Accept-Encoding": "identity"}
# Seconds to wait for a connection, and for more of a response.
TIMEOUT = (10, 60)
# Seconds to wait before each further attempt at an address that sent nothing new.
BACK_OFF = (1.0, 2.0, 4.0, 8.0)
# Status codes after which the same request may succeed.
TEMPORARY = {408, 425, 429, 500, 502, 503, 504}
READ_BYTES = 1 << 16
# Number of failed files after which the others are not tried.
GIVE_UP = 8

logger = logging.getLogger(__name__)

OnProgress = Callable[[str, int], None]


@dataclass(frozen=True)
class RemoteFile:
    """A file to download.

    Args:
        name: its path, relative to the folder it is kept in.
        urls: its addresses, in the order to try them; empty for a file that comes only in an archive.
        size: its length in bytes.
        sha256: its SHA-256, in hexadecimal.
    """

    name: str
    urls: tuple[str, ...]
    size: int
    sha256: str

    def check(self, path: Path) -> None:
        """Raises ValueError unless the file at ``path``, or the content of a compressed one, is this file."""
        size, sha256 = path.stat().st_size, None
        if compression(path):
            size, sha256 = _content_sha256(path)
        if size != self.size:
            raise ValueError(f"{path}: {size} bytes, expected {self.size}; it is damaged or another file")
        sha256 = sha256 or file_sha256(path)
        if sha256 != self.sha256:
            raise ValueError(f"{path}: SHA-256 {sha256}, expected {self.sha256}; it is damaged or another file")


def _content_sha256(path: Path) -> tuple[int, str]:
    """The length and the SHA-256 of the content of a compressed file."""
    size, digest = 0, hashlib.sha256()
    for block in content_of(path):
        size += len(block)
        digest.update(block)
    return size, digest.hexdigest()


class WrongFile(Exception):
    """An address gives another file than the one expected."""


def fetch(
    files: Sequence[RemoteFile],
    folder: Path,
    *,
    at_once: int = 1,
    back_off: Sequence[float] = BACK_OFF,
    on_progress: OnProgress = lambda doing, num_bytes: None,
) -> list[Path]:
    """Downloads the files that are not in a folder yet.

    A file gets its name when its hash is right. An interrupted download is in NAME.part and resumes. A file that is
    there already and is not the one expected is deleted, with a warning that names it.

    Args:
        files: the files to download.
        folder: where to keep them; made if need be.
        at_once: how many to download at the same time.
        back_off: seconds to wait before each further attempt at an address.
        on_progress: called with the name of a file and the number of bytes just read, or found there already.

    Returns:
        The paths of the files.

    Raises:
        ValueError: no address gives a file, or there is no room for them; says what to do.
    """
    with ExitStack() as stack:
        for place in dict.fromkeys([folder, *((folder / file.name).parent for file in files)]):
            stack.enter_context(existing_folder(place))
        return _fetch(files, folder, at_once, list(back_off), on_progress)


def _fetch(
    files: Sequence[RemoteFile], folder: Path, at_once: int, back_off: list[float], on_progress: OnProgress
) -> list[Path]:
    fetcher = _Fetcher(folder, back_off, on_progress)
    missing = []
    with ThreadPoolExecutor(at_once) as executor:
        for file, there in zip(files, executor.map(fetcher.is_there, files)):
            if not there:
                missing.append(file)
        _check_room(missing, folder)
        failures: list[DownloadFailed] = []
        try:
            for future in as_completed([executor.submit(fetcher.fetch, file) for file in missing]):
                try:
                    future.result()
                except DownloadFailed as failed:
                    failures.append(failed)
                if len(failures) == GIVE_UP or any(failed.no_network for failed in failures):
                    break
        finally:
            fetcher.stopped.set()
            executor.shutdown(cancel_futures=True)
    if failures:
        still = sum(not (folder / file.name).exists() for file in missing) - 1
        more = f"; {still} more files of {len(files)} are still missing" if still else ""
        raise ValueError(f"{failures[0]}{more}")
    return [folder / file.name for file in files]


class DownloadFailed(Exception):
    """No address gives a file; the message says what to do. With ``no_network`` other files need not be tried."""

    def __init__(self, message: str, *, no_network: bool):
        super().__init__(message)
        self.no_network = no_network


class _Fetcher:
    """Downloads single files."""

    def __init__(self, folder: Path, back_off: list[float], on_progress: OnProgress):
        self.folder, self.back_off, self.on_progress = folder, back_off, on_progress
        self.session = requests.Session()
        self.session.headers.update(HEADERS)
        self.stopped = threading.Event()

    def is_there(self, file: RemoteFile) -> bool:
        path = self.folder / file.name
        if not path.exists():
            return False
        try:
            file.check(path)
        except ValueError as error:
            logger.warning("%s; it is deleted, and downloaded again", error)
            path.unlink()
            return False
        self.on_progress(file.name, file.size)
        return True

    def fetch(self, file: RemoteFile) -> None:
        path = self.folder / file.name
        part = path.with_name(path.name + ".part")
        if part.exists():
            self.on_progress(file.name, part.stat().st_size)
        failures, no_network = [], True
        for url in file.urls:
            try:
                self._fetch_from(url, file, part)
                part.replace(path)
                return
            except (requests.RequestException, WrongFile) as error:
                failures.append(f"{url}: {_reason(error)}")
                no_network = no_network and _no_such_host(error)
            if self.stopped.is_set():
                break
        raise DownloadFailed(
            f"{file.name} could not be downloaded ({'; '.join(failures)}). Get {file.urls[0]} ({file.size} bytes, "
            f"SHA-256 {file.sha256}) in another way and put it at {path}, or name its place with --from",
            no_network=no_network,
        )

    def _fetch_from(self, url: str, file: RemoteFile, part: Path) -> None:
        """Completes the file at ``part``. Raises RequestException or WrongFile if this address does not give it."""
        waits = iter(self.back_off)
        while True:
            offset = part.stat().st_size if part.exists() else 0
            try:
                # Without a part, an empty file is requested, too.
                if offset < file.size or not part.exists():
                    self._transfer(url, file, part, offset)
                return self._check(url, file, part, resumed=offset > 0)
            except _StartOver:
                continue
            except requests.HTTPError as error:
                if error.response.status_code not in TEMPORARY:
                    raise
                failure = error
            except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
                if _no_such_host(error):
                    raise
                failure = error
            if part.exists() and part.stat().st_size > offset:
                # Do not give up as long as something comes.
                waits = iter(self.back_off)
            wait = next(waits, None)
            if wait is None or self.stopped.wait(wait):
                raise failure

    def _transfer(self, url: str, file: RemoteFile, part: Path, offset: int) -> None:
        """Appends to ``part`` what comes. Raises ConnectionError if that is not all."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        with self.session.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            if response.status_code == 416:
                raise WrongFile(f"has no more than {offset} bytes, expected {file.size}")
            response.raise_for_status()
            if response.status_code != 206:
                # The server does not support ranges, and sends the whole file.
                offset = 0
            length = response.headers.get("Content-Length")
            if length is not None and offset + int(length) != file.size:
                raise WrongFile(f"has {offset + int(length)} bytes, expected {file.size}")
            with open(part, "ab" if offset else "wb") as out:
                for content in response.iter_content(READ_BYTES):
                    if self.stopped.is_set():
                        raise requests.ConnectionError("stopped")
                    if out.tell() + len(content) > file.size:
                        # Keep what was there before, which may be right.
                        out.truncate(offset)
                        if not offset:
                            part.unlink()
                        raise WrongFile(f"has more than the expected {file.size} bytes")
                    with naming_file_in_errors(part):
                        out.write(content)
                    self.on_progress(file.name, len(content))
        if part.stat().st_size < file.size:
            raise requests.ConnectionError(f"the connection ended after {part.stat().st_size} of {file.size} bytes")

    def _check(self, url: str, file: RemoteFile, part: Path, *, resumed: bool) -> None:
        sha256 = file_sha256(part) if part.stat().st_size == file.size else "of another size"
        if sha256 == file.sha256:
            return
        part.unlink()
        if resumed:
            # What was there before may be wrong.
            raise _StartOver
        raise WrongFile(f"gave a file with the SHA-256 {sha256}, expected {file.sha256}; it was deleted")


class _StartOver(Exception):
    """The parts of the file do not fit together. It is deleted."""


def _reason(error: Exception) -> str:
    """Describes an error, without the object names in the messages of requests."""
    if isinstance(error, WrongFile):
        return str(error)
    if isinstance(error, requests.HTTPError):
        return f"answered {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if _no_such_host(error):
        return "no such host, or no network"
    return f"the connection failed ({type(error).__name__})"


def _no_such_host(error: Exception) -> bool:
    # requests has no class for it, but the name of urllib3's is in the text.
    return "NameResolutionError" in str(error)


def _check_room(files: Sequence[RemoteFile], folder: Path) -> None:
    needed = sum(file.size for file in files)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            f"{folder}: {free} bytes free, and {needed} are to be downloaded; make room, or name another folder"
        )
