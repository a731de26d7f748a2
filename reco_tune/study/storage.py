"""Folders that machines of a cluster without a shared file system exchange, each as one archive in an object store.

    ADDRESS/NAME/00000002-5f3a9c01.tar, .whole      the newest whole one is the folder; older ones are then deleted

An object store has neither renaming nor locks, and a killed process may leave half an archive. So an archive counts
only if its `.whole` is there, and no two have the same name. Each machine keeps what it fetched in its own folder.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import tarfile
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pyarrow.fs import FileSelector, FileSystem, FileType

from reco_tune.errors import StudyError, no_space
from reco_tune.locks import lock
from reco_tune.settings import Experiment
from reco_tune.settings.protocols import PUBLISHED
from reco_tune.study.dispatcher import Job

RESULT = "result.json"
"""File in the folder of a run that was evaluated."""
CHECKPOINT = "checkpoint"
"""Folder of a run that is stored separately. Only whoever continues the run needs it, and it has most of the bytes."""
_ONLY = "file"
"""Name of a single file in its archive."""


class StorageError(StudyError):
    """The storage does not answer, or a machine has no room for the files. The run is not to blame."""


class Storage:
    """Named folders at an address that every machine of a cluster can reach."""

    def __init__(self, address: str) -> None:
        """
        Args:
            address: as pyarrow takes it: s3://bucket/folder, gs://, abfs://, hdfs://, file:///folder, or
                fsspec+PROTOCOL://.

        Raises:
            StorageError: where pyarrow does not know it, or its server does not answer.
        """
        if urlsplit(address).password is not None:
            raise StorageError(
                "resources.storage must not contain a password, because logs repeat it; put credentials into the"
                " environment of every machine"
            )
        self.address = address
        with self._told():
            self._files, self._root = FileSystem.from_uri(address)

    def probe(self) -> str:
        """Writes a small folder under a new name and returns the name; `forget` deletes it.

        Raises:
            StorageError: if it cannot be written.
        """
        name = f"probes/{uuid.uuid4().hex[:12]}"
        with tempfile.TemporaryDirectory() as folder:
            self.put(Path(folder), name)
        return name

    def holds(self, name: str) -> bool:
        """Whether the storage has a complete archive of this name."""
        return self.newest(name) is not None

    def put(self, source: Path, name: str, without: str | None = None) -> None:
        """Stores a folder, without one entry if given, or a single file under a name, and replaces what was there.

        Raises:
            StorageError: if it cannot be written; the old content stays.
        """
        with self._told():
            before = self._archives(name)
            number = max((int(archive[:8]) for archive in before), default=0) + 1
            place, archive_name = f"{self._root}/{name}", f"{number:08d}-{uuid.uuid4().hex[:8]}"
            self._files.create_dir(place)
            with (
                self._files.open_output_stream(f"{place}/{archive_name}.tar") as stream,
                tarfile.open(fileobj=stream, mode="w|") as archive,
            ):
                left_out = f"./{without}"
                arcname = "." if source.is_dir() else _ONLY
                archive.add(source, arcname=arcname, filter=lambda member: None if member.name == left_out else member)
            with self._files.open_output_stream(f"{place}/{archive_name}.whole"):
                pass
            for old in before:
                for ending in ("whole", "tar"):
                    with suppress(FileNotFoundError):
                        self._files.delete_file(f"{place}/{old}.{ending}")

    def get(self, name: str, folder: Path) -> bool:
        """Replaces `folder` by what is stored under the name; False if there is nothing.

        Raises:
            StorageError: if it cannot be read.
            OSError: if the disk of the folder is full.
        """
        staging, tried = folder.with_name(f".fetching-{uuid.uuid4().hex[:12]}"), None
        while (newest := self.newest(name)) not in (None, tried):
            tried = newest
            folder.parent.mkdir(parents=True, exist_ok=True)
            try:
                with self._told(own_disk=True):
                    path = f"{self._root}/{name}/{newest}.tar"
                    with (
                        self._files.open_input_stream(path) as stream,
                        tarfile.open(fileobj=stream, mode="r|") as archive,
                    ):
                        archive.extractall(staging, filter="data")
                    shutil.rmtree(folder, ignore_errors=True)
                    staging.rename(folder)
                return True
            except StorageError as error:
                if not isinstance(error.__cause__, FileNotFoundError):  # otherwise a newer one has just replaced it
                    raise
            finally:
                shutil.rmtree(staging, ignore_errors=True)
        return False

    def forget(self, name: str) -> None:
        """Deletes what is stored under the name, as far as possible."""
        with suppress(Exception):
            self._files.delete_dir(f"{self._root}/{name}")

    def newest(self, name: str) -> str | None:
        with self._told():
            return max(self._archives(name, "whole"), default=None)

    def _archives(self, name: str, ending: str = "tar|whole") -> set[str]:
        inside = self._files.get_file_info(FileSelector(f"{self._root}/{name}", allow_not_found=True))
        found = (
            re.fullmatch(rf"(\d{{8}}-\w+)\.({ending})", info.base_name) for info in inside if info.type == FileType.File
        )
        return {match[1] for match in found if match}

    @contextmanager
    def _told(self, own_disk: bool = False) -> Iterator[None]:
        """Turns any error of pyarrow and the packages behind it into one sentence."""
        try:
            yield
        except Exception as error:
            if own_disk and no_space(error):
                raise
            raise StorageError(
                f"the storage {self.address} cannot be used ({' '.join(str(error).split())[:200]}); give"
                " resources.storage an address that pyarrow knows (s3://, gs://, abfs://, hdfs://, file://), and check"
                " its credentials on every machine"
            ) from error


# --- what travels ---


def cached_parts(experiment: Experiment, tokens: Path, folders: Iterable[Path]) -> dict[str, Path]:
    """The parts of the cache folder that workers read, by name in the storage. The token cache comes first. Its name
    contains a hash of its file names.

    Args:
        tokens: folder of the token cache, which grows when pieces of another length are needed.
        folders: the other folders, whose names identify their content.
    """
    files = hashlib.sha256("/".join(sorted(file.name for file in tokens.iterdir())).encode()).hexdigest()[:8]
    parts = {f"tokens/{tokens.name}-{files}": tokens}
    parts |= {f"{folder.parent.name}/{folder.name}": folder for folder in folders}
    evaluation = experiment.evaluation
    if evaluation.protocol in PUBLISHED and evaluation.extractor_path is not None:
        parts[_extractor_name(experiment)] = evaluation.extractor_path
    return parts


@dataclass(frozen=True)
class LocalFolders:
    """Where a job finds its files on a machine."""

    experiment: Experiment
    """The job with the paths of this machine. What a model remembers are the driver's paths."""
    tokens: Path
    folder: Path
    """Of the run."""


def fetch_cache(job: Job, storage: Storage) -> LocalFolders:
    """Fetches the parts of the cache that the job reads, once for all workers of this machine.

    Raises:
        StorageError: if a part is missing, or this machine cannot store files.
    """
    own = scratch()
    cache = own / "cache"
    for name in job.cached:
        with _held(cache / name):
            if not (cache / name).exists() and not storage.get(name, cache / name):
                raise StorageError(f"the storage {storage.address} has lost {name}; `reco-tune resume` stores it again")
    experiment = Experiment.model_validate(job.settings)
    data = experiment.data.model_copy(update={"cache_dir": cache})
    evaluation = experiment.evaluation.model_copy(
        update={"extractor_path": cache / _extractor_name(experiment) / _ONLY}
    )
    here = experiment.model_copy(update={"data": data, "evaluation": evaluation})
    return LocalFolders(here, cache / job.cached[0], own / job.stored)


def fetch_run(storage: Storage, name: str, folder: Path) -> None:
    """Fetches the run's folder as its last worker stored it; nothing if no worker has begun the run."""
    shutil.rmtree(folder, ignore_errors=True)
    storage.get(f"{name}/results", folder)
    storage.get(f"{name}/{CHECKPOINT}", folder / CHECKPOINT)


def store_run(storage: Storage, name: str, folder: Path) -> None:
    """Stores the run's folder. Leaves out the checkpoint of a run with a result, because nobody continues it."""
    if (folder / CHECKPOINT).is_dir() and not (folder / RESULT).exists():
        storage.put(folder / CHECKPOINT, f"{name}/{CHECKPOINT}")
    storage.put(folder, f"{name}/results", without=CHECKPOINT)


def holds_run(storage: Storage, name: str) -> bool:
    """Whether the run's folder has been stored."""
    return storage.holds(f"{name}/results")


def fetch_results(storage: Storage, name: str, folder: Path) -> bool:
    """Stores what an ended run leaves: weights, history, samples. False if there is nothing."""
    return storage.get(f"{name}/results", folder)


def scratch() -> Path:
    """Folder of this machine for the files that its workers fetch.

    Raises:
        StorageError: if it is not writable.
    """
    folder = Path(tempfile.gettempdir()) / f"reco-tune-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        usable = folder.stat().st_uid == os.getuid() and os.access(folder, os.W_OK)
    except OSError:
        usable = False
    if not usable:
        raise StorageError(
            f"{folder} on {socket.gethostname()} cannot be written to; set TMPDIR to another folder there"
        )
    return folder


def _extractor_name(experiment: Experiment) -> str:
    return f"i3d/{experiment.evaluation.extractor_sha256[:16]}"


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """A lock for one process of this machine at a time."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with lock(folder.with_name(f".{folder.name}.lock"), seconds=-1):
        yield
