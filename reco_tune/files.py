"""Writes lines, JSON values and folders so that a killed process never leaves a partial one."""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any


def refuse_address(path: Path) -> Path:
    """The path itself.

    Raises:
        ValueError: for an address such as s3://bucket/folder, which would create a folder called `s3:`.
    """
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/(.*)", str(path))
    if found:
        raise ValueError(
            f"{found[1]}://{found[2].lstrip('/')} is an address; give a path here, because logs are appended to and"
            " caches are memory-mapped. If machines share no file system, give the address as resources.storage"
            " (docs/tutorials/cluster.md)"
        )
    return path


class LineWriter:
    """Appends lines to a file with one writer. Each line is complete and on disk when `append` returns."""

    def __init__(self, path: Path, sync: Callable[[int], None] = os.fsync) -> None:
        """Opens the file for appending. Removes an incomplete last line of a killed writer; `torn` then holds it.

        Args:
            sync: function that syncs a file descriptor to disk, as `os.fsync`.
        """
        self.torn, self._sync = "", sync
        if path.exists():
            content = path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                self.torn = content[whole:].decode(errors="replace")
                os.truncate(path, whole)
        self._file = path.open("ab", buffering=0)

    def append(self, line: str) -> None:
        """Appends one line.

        Args:
            line: without its line end.

        Raises:
            OSError: if it cannot be written. The file then ends with the line before.
        """
        left, whole = f"{line}\n".encode(), os.fstat(self._file.fileno()).st_size
        try:
            while left:  # a nearly full disk can write only a part without an error
                left = left[self._file.write(left) :]
            self._sync(self._file.fileno())
        except OSError:
            self._file.truncate(whole)
            raise

    def close(self) -> None:
        self._file.close()


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file atomically; it is on disk when this returns."""
    staging = path.with_name(f".{path.name}")
    with staging.open("w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    staging.replace(path)


def publish(folder: Path, save: Callable[[Path], None]) -> None:
    """Lets `save` write a temporary folder and renames it. If another process finished first, its folder stays."""
    staging = folder.with_name(f".writing-{uuid.uuid4().hex[:12]}")
    try:
        save(staging)
        staging.rename(folder)
    except OSError:
        if not folder.exists():
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
