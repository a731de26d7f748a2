"""What the machines of a cluster without a shared file system give each other: folders, each as one archive in an object store.

    ADDRESS/NAME/00000002.tar, 00000002.whole      the newest whole one is the folder; older ones go once it lies there

An object store knows neither renaming nor locks, and whoever is killed may leave half an archive: one counts when its `.whole` stands
beside it. What a machine fetched lies in a folder of its own.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tarfile
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from pyarrow import ArrowException
from pyarrow.fs import FileSelector, FileSystem, FileType

from reco_tune.errors import StudyError, no_space
from reco_tune.settings import Experiment
from reco_tune.study.desk import Job

REMOTE = (ArrowException, OSError)
"""What pyarrow raises where a server is gone or refuses."""


class StorageError(StudyError):
    """A storage that does not answer: no run's fault, and no other run would fare better."""


class Storage:
    """Named folders behind an address that every machine of a cluster reaches; one process at a time writes a name."""

    def __init__(self, address: str) -> None:
        """
        Args:
            address: as pyarrow takes it: s3://bucket/folder, gs://, abfs://, hdfs://, file:///folder, or fsspec+PROTOCOL://.

        Raises:
            StorageError: where pyarrow does not know it, or its server does not answer.
        """
        if "@" in urlsplit(address).netloc:
            raise StorageError(
                "resources.storage must not hold a password, logs repeat it; put credentials into the environment of every machine"
            )
        self.address = address
        try:
            self._files, self._root = FileSystem.from_uri(address)
        except (*REMOTE, ImportError, ValueError) as error:
            raise self._refused(error) from error

    def probe(self) -> str:
        """Writes a small folder under a new name, which it returns; `forget` takes it away.

        Raises:
            StorageError: where nothing can be written.
        """
        name = f"probes/{uuid.uuid4().hex[:12]}"
        with tempfile.TemporaryDirectory() as folder:
            self.put(Path(folder), name)
        return name

    def holds(self, name: str) -> bool:
        """Whether something whole lies under the name."""
        with self._told():
            return bool(self._numbers(name, "whole"))

    def put(self, source: Path, name: str) -> None:
        """Lays a folder (or one file, which then is the only one of its folder) under a name, in place of what lay there.

        Raises:
            StorageError: where the storage does not take it; what lay there still does.
        """
        with self._told():
            before = self._numbers(name, "tar")
            place, number = f"{self._root}/{name}", max(before, default=0) + 1
            self._files.create_dir(place)
            with self._files.open_output_stream(f"{place}/{number:08d}.tar") as stream, tarfile.open(fileobj=stream, mode="w|") as archive:
                archive.add(source, arcname="." if source.is_dir() else source.name)
            with self._files.open_output_stream(f"{place}/{number:08d}.whole"):
                pass
            for old in before:
                for ending in ("whole", "tar"):
                    with suppress(FileNotFoundError):
                        self._files.delete_file(f"{place}/{old:08d}.{ending}")

    def get(self, name: str, folder: Path) -> bool:
        """Puts what lies under the name in place of `folder`; False where there is nothing.

        Raises:
            StorageError: where it cannot be read.
        """
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = folder.with_name(f".fetching-{uuid.uuid4().hex[:12]}")
        with self._told():
            for number in reversed(self._numbers(name, "whole")):
                try:
                    stream = self._files.open_input_stream(f"{self._root}/{name}/{number:08d}.tar")
                except FileNotFoundError:  # a newer one has just taken its place
                    continue
                try:
                    with stream, tarfile.open(fileobj=stream, mode="r|") as archive:
                        archive.extractall(staging, filter="data")
                    shutil.rmtree(folder, ignore_errors=True)
                    staging.rename(folder)
                    return True
                finally:
                    shutil.rmtree(staging, ignore_errors=True)
        return False

    def forget(self, name: str) -> None:
        """Takes away what lies under the name."""
        with self._told(), suppress(FileNotFoundError):
            self._files.delete_dir(f"{self._root}/{name}")

    def _numbers(self, name: str, ending: str) -> list[int]:
        inside = self._files.get_file_info(FileSelector(f"{self._root}/{name}", allow_not_found=True))
        found = (re.fullmatch(rf"(\d+)\.{ending}", info.base_name) for info in inside if info.type == FileType.File)
        return sorted(int(match[1]) for match in found if match)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (*REMOTE, tarfile.TarError) as error:
            if no_space(error):
                raise
            raise self._refused(error) from error

    def _refused(self, error: Exception) -> StorageError:
        return StorageError(
            f"the storage {self.address} cannot be used ({' '.join(str(error).split())[:200]}); give resources.storage an address that "
            "pyarrow knows (s3://, gs://, abfs://, hdfs://, file://), and see to its credentials on every machine"
        )


def scratch() -> Path:
    """Folder of this machine that holds what its workers fetched."""
    return Path(tempfile.gettempdir()) / f"reco-tune-{os.getuid()}"


def cached_parts(experiment: Experiment, folders: Iterable[Path]) -> dict[str, Path]:
    """What workers read, by its name in the storage.

    Args:
        folders: those of the cache folder.
    """
    root, evaluation = experiment.cache_dir.resolve(), experiment.evaluation
    parts = {str(folder.resolve().relative_to(root)): folder for folder in folders}
    if evaluation.extractor_path is not None:
        parts[_extractor_name(experiment)] = evaluation.extractor_path
    return parts


def brought_here(job: Job, storage: Storage) -> Job:
    """The job with folders of this machine, into which what it reads of the cache has been fetched.

    Raises:
        StorageError: where something of it is missing.
    """
    cache = scratch() / "cache"
    for name in job.cached:
        with _held(cache / name):
            if not (cache / name).exists() and not storage.get(name, cache / name):
                raise StorageError(f"the storage {storage.address} has lost {name}; `reco-tune resume` lays it there again")
    experiment = Experiment.model_validate(job.settings)
    settings = {**job.settings, "data": {**job.settings["data"], "cache_dir": str(cache)}}
    if (path := experiment.evaluation.extractor_path) is not None:
        here = cache / _extractor_name(experiment) / path.name
        settings["evaluation"] = {**settings["evaluation"], "extractor_path": str(here)}
    tokens = cache / Path(job.tokens).relative_to(experiment.cache_dir.resolve())
    return replace(job, settings=settings, tokens=str(tokens), folder=str(scratch() / job.kept) if job.kept else "")


def _extractor_name(experiment: Experiment) -> str:
    return f"i3d/{experiment.evaluation.extractor_sha256[:16]}"


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """One process of this machine at a time."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
