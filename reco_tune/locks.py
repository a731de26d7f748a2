"""Locks between processes, on any file system. A held lock names its owner.

The system frees a lock (flock) when its process ends, however it ends. Some file systems have no such locks (Lustre
without `-o flock`, NFS without its lock daemon). There a marker file beside the lock file is the lock. A marker left
by a killed process of this machine is taken over. Whether a process of another machine still runs cannot be known
here.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, SoftFileLock, Timeout, UnixFileLock

NO_FLOCK = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK)
"""Errors of file systems without locks."""
TAKEOVER_SECONDS = 0.2
"""One attempt removes an abandoned marker, and the next attempt creates a new one, after this time."""


class HeldError(Exception):
    """Another process holds the lock; the message names it."""


@contextmanager
def lock(path: Path, seconds: float = 0.0) -> Iterator[None]:
    """Keeps every other process out while the block runs.

    Args:
        path: path of the lock file, which stays and names the last owner; its folder must exist.
        seconds: how long to wait; below 0 means forever.

    Raises:
        HeldError: if another process holds it.
        OSError: if the file cannot be written.
    """
    held = _acquired(path, seconds)
    try:
        path.write_text(f"{os.getpid()}\n{socket.gethostname()}\n")
        yield
    finally:
        held.release()


def holder(path: Path) -> str:
    """The process that holds the lock now, in words; empty if none does."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _owner(path)
    except OSError as error:
        if error.errno in NO_FLOCK and marker(path).exists():
            try:
                _marked(path, 0.0).release()
            except HeldError as held:
                return str(held)
    return ""


def marker(path: Path) -> Path:
    """The marker file that replaces the lock on file systems without locks."""
    return path.with_name(f"{path.name}.marker")


def _acquired(path: Path, seconds: float) -> BaseFileLock:
    held = UnixFileLock(path, fallback_to_soft=False)  # its own fallback uses the lock file as the marker
    try:
        held.acquire(timeout=seconds)
    except Timeout as error:
        raise HeldError(_owner(path)) from error
    except OSError as error:
        if error.errno not in NO_FLOCK:
            raise
        return _marked(path, seconds)
    return held


def _marked(path: Path, seconds: float) -> BaseFileLock:
    held = SoftFileLock(marker(path))
    try:
        held.acquire(timeout=max(seconds, TAKEOVER_SECONDS) if seconds >= 0 else seconds)
    except Timeout as error:
        raise HeldError(
            f"{_owner(path)}; the file system has no locks that end with their process, so if that process is gone,"
            f" remove {marker(path)}"
        ) from error
    return held


def _owner(path: Path) -> str:
    pid, host = (*path.read_text(errors="replace").split("\n"), "")[:2]
    return f"process {pid or '?'}" + (f" on {host}" if host else "")
