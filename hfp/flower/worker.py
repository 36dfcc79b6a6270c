"""The worker is the process that keeps torch and a client's data between messages. The first message starts it, and it
ends when it is idle.

``ask`` is the ClientApp's end and imports no torch; ``python -m hfp.flower.worker FOLDER OWNER`` is the other. They
speak over a Unix socket in a folder that only its owner can enter, in messages of bytes: nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

from hfp.errors import InputError
from hfp.federation.letter import Letter

IDLE = 900.0  # seconds without a message after which a worker ends
WATCH = 2.0  # seconds between looks at whether the node's process is still there
START = 120.0  # seconds that a worker may take to load torch
SOCKET_PATH = 104  # bytes that every Unix takes for the path of a socket, the zero at its end among them
_STARTED: list[subprocess.Popen[bytes]] = []  # kept, since Python warns of a running child that nothing refers to


def ask(name: str, request: dict[str, Any], letter: Letter, kept: Letter | None) -> tuple[Letter, Letter | None]:
    """Have the node's worker called `name` answer a letter; the worker is started if it does not run.

    Raises:
        InputError: it doesn't start, or ends before it answers.
    """
    folder = _folder(name)
    with _alone(folder), _connected(folder) as connection:
        try:
            _send(connection, request, letter, kept)
            _, answer, keep = _receive(connection)
        except (OSError, EOFError) as error:
            raise InputError(f"this node's worker ended before it answered; see {folder / 'log'}") from error
    return answer, keep


def serve(folder: Path, owner: int) -> None:
    """Answer letters until none has come for a while, or the process `owner` has ended."""
    from hfp.flower.workshop import answer

    path = folder / "socket"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(1)
        listener.settimeout(WATCH)
        last = time.monotonic()
        while True:
            try:
                accepted, _ = listener.accept()
            except TimeoutError:
                if (time.monotonic() - last > IDLE or not _alive(owner)) and _cleared_away(folder):
                    return
                continue
            with (
                Connection(accepted.detach()) as connection,
                contextlib.suppress(OSError, EOFError),  # the other end may be killed at any time
            ):
                _send(connection, {}, *answer(*_receive(connection)))
            last = time.monotonic()


def _cleared_away(folder: Path) -> bool:
    """Remove a worker's folder, unless somebody sends a message just now, and return whether it is gone."""
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        shutil.rmtree(folder)
    return True


def _folder(name: str) -> Path:
    """Return the folder of the worker called `name`, whose path is short enough for a socket.

    It is in the temporary folder, or in `/tmp` where that one's path is too long.
    """
    inside = Path(f"hfp-{os.getuid()}", hashlib.sha256(name.encode()).hexdigest()[:16])
    folder = tempfile.gettempdir() / inside
    return folder if len(os.fsencode(folder / "socket")) < SOCKET_PATH else "/tmp" / inside


def _make_private(folder: Path) -> None:
    """Make a folder for this user alone.

    Raises:
        InputError: it is there already, and others can enter it.
    """
    for level in (folder.parent, folder):
        level.mkdir(mode=0o700, exist_ok=True)
        status = level.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
            raise InputError(f"{level} must be a folder that only this user can enter; remove it")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process at a time send a message or start the worker, which does not clear up meanwhile."""
    while True:
        _make_private(folder)
        with open(folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if _same(lock, folder / "lock"):  # else a worker has cleared the folder away meanwhile
                yield
                return


def _same(lock: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def _connected(folder: Path) -> Iterator[Connection]:
    connection = _connect(folder)
    if connection is None:
        process = _start(folder)
        until = time.monotonic() + START
        while connection is None:
            if process.poll() is not None or time.monotonic() > until:
                raise InputError(f"this node's worker doesn't start; see {folder / 'log'}")
            time.sleep(0.05)
            connection = _connect(folder)
    with connection:
        yield connection


def _connect(folder: Path) -> Connection | None:
    with socket.socket(socket.AF_UNIX) as made, contextlib.suppress(OSError):
        made.connect(str(folder / "socket"))
        return Connection(made.detach())
    return None


def _start(folder: Path) -> subprocess.Popen[bytes]:
    (folder / "socket").unlink(missing_ok=True)
    with open(folder / "log", "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "hfp.flower.worker", str(folder), str(_owner())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    _STARTED.append(process)
    return process


def _owner() -> int:
    """Return the process that outlives this one: Flower's executor, which the node starts and ends."""
    return os.getppid()


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _send(connection: Connection, request: dict[str, Any], letter: Letter, kept: Letter | None) -> None:
    """Send five messages; the last two are empty where nothing is kept."""
    for part in (json.dumps(request), letter.header, letter.body, kept and kept.header, kept and kept.body):
        connection.send_bytes(part.encode() if isinstance(part, str) else part or b"")


def _receive(connection: Connection) -> tuple[dict[str, Any], Letter, Letter | None]:
    request, header, body, kept_header, kept_body = (connection.recv_bytes() for _ in range(5))
    kept = Letter(kept_header.decode(), kept_body) if kept_header else None
    return json.loads(request), Letter(header.decode(), body), kept


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
