"""What machines without a shared file system give each other: folders come and go whole, and a dead storage is no run's fault."""

from __future__ import annotations

import os
import tarfile
import threading
from pathlib import Path

import pytest
from pyarrow.fs import FileSystem

from reco_tune.settings import make_experiment
from reco_tune.study import storage as storage_module
from reco_tune.study.desk import Job
from reco_tune.study.storage import Storage, StorageError, brought_here, cached_parts

ADDRESSES = ["file://{}/a storage", "{}/plain path", "fsspec+memory://{}"]


@pytest.fixture(params=ADDRESSES, ids=["file", "path", "fsspec"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return Storage(request.param.format(tmp_path).replace(" ", "%20" if "://" in request.param else " "))


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def folder_of(path: Path, **files: str) -> Path:
    for name, text in files.items():
        (path / "inner" / name).parent.mkdir(parents=True, exist_ok=True)
        (path / "inner" / name).write_text(text)
    return path


def test_a_folder_comes_back_as_it_was_laid_there_last(storage: Storage, tmp_path: Path) -> None:
    here = tmp_path / "here"
    assert not storage.holds("trials/a") and not storage.get("trials/a", here) and not here.exists()
    storage.put(folder_of(tmp_path / "first", one="1", two="2"), "trials/a")
    storage.put(folder_of(tmp_path / "second", one="3"), "trials/a")
    folder_of(here, stale="from an earlier attempt")
    assert storage.get("trials/a", here)
    assert contents(here) == {"inner/one": "3"}
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".fetching")) == []
    storage.forget("trials/a")
    assert not storage.holds("trials/a") and not storage.get("trials/a", here)
    assert contents(here) == {"inner/one": "3"}


def test_a_single_file_keeps_its_name(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "i3d.pt").write_text("weights")
    storage.put(tmp_path / "i3d.pt", "i3d/abc")
    assert storage.get("i3d/abc", tmp_path / "here") and contents(tmp_path / "here") == {"i3d.pt": "weights"}


def test_half_an_archive_counts_for_nothing(tmp_path: Path) -> None:
    """Its writer was killed: the one before is still there, and the next one takes the place of both."""
    storage, place = Storage(f"file://{tmp_path}/storage"), tmp_path / "storage" / "trials" / "a"
    storage.put(folder_of(tmp_path / "first", one="1"), "trials/a")
    whole = (place / "00000001.tar").read_bytes()
    (place / "00000002.tar").write_bytes(whole[: len(whole) // 2])
    assert storage.get("trials/a", tmp_path / "here") and contents(tmp_path / "here") == {"inner/one": "1"}
    storage.put(folder_of(tmp_path / "second", one="2"), "trials/a")
    assert sorted(path.name for path in place.iterdir()) == ["00000003.tar", "00000003.whole"]
    assert storage.get("trials/a", tmp_path / "here") and contents(tmp_path / "here") == {"inner/one": "2"}


def test_what_cannot_be_read_whole_changes_nothing(tmp_path: Path) -> None:
    storage = Storage(f"file://{tmp_path}/storage")
    storage.put(folder_of(tmp_path / "first", one="1" * 50_000), "trials/a")
    archive = tmp_path / "storage" / "trials" / "a" / "00000001.tar"
    archive.write_bytes(archive.read_bytes()[:20_000])
    here = folder_of(tmp_path / "here", one="kept")
    with pytest.raises(StorageError, match=r"the storage file://.* cannot be used"):
        storage.get("trials/a", here)
    assert contents(here) == {"inner/one": "kept"}


def test_an_archive_cannot_write_outside_its_folder(tmp_path: Path) -> None:
    storage = Storage(f"file://{tmp_path}/storage")
    storage.put(folder_of(tmp_path / "first", one="1"), "trials/a")
    with tarfile.open(tmp_path / "storage" / "trials" / "a" / "00000001.tar", "w") as archive:
        archive.add(tmp_path / "first" / "inner" / "one", arcname="../outside")
    with pytest.raises(StorageError):
        storage.get("trials/a", tmp_path / "deep" / "here")
    assert not (tmp_path / "deep" / "outside").exists() and not (tmp_path / "outside").exists()


@pytest.mark.parametrize("address", ["ftp://server/folder", "no such thing", "s3a://bucket"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(StorageError, match=r"the storage .* cannot be used \(.*\); give resources.storage an address"):
        Storage(address)


def test_an_address_with_a_password() -> None:
    with pytest.raises(StorageError, match="must not hold a password") as told:
        Storage("s3://key:secret@bucket/folder")
    assert "secret" not in str(told.value)


def test_a_storage_that_takes_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot be used"):
        Storage(f"file://{tmp_path}/file").probe()


def test_a_full_disk_is_told_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28))

    storage = Storage(f"file://{tmp_path}/storage")
    storage.put(folder_of(tmp_path / "first", one="1"), "trials/a")
    monkeypatch.setattr(tarfile.TarFile, "extractall", full)
    with pytest.raises(OSError, match="No space left"):
        storage.get("trials/a", tmp_path / "here")


def test_a_job_is_brought_to_a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of one machine fetch a part once, and find everything that the driver has under folders of their own."""
    cache, weights = tmp_path / "driver" / "cache", tmp_path / "driver" / "i3d.pt"
    folder_of(cache / "tokens" / "abc", codes="codes")
    weights.write_text("weights")
    evaluation = {"protocol": "stylegan-v", "extractor_path": str(weights), "samples": 4, "reference_clips": 4}
    experiment = make_experiment({"data": {"cache_dir": str(cache), "clip_frames": 17}, "evaluation": evaluation}, {}, where="test")
    storage, fetched = Storage(f"file://{tmp_path}/storage"), []
    parts = cached_parts(experiment, [cache / "tokens" / "abc"])
    for name, part in parts.items():
        storage.put(part, name)
    monkeypatch.setattr(storage_module, "scratch", lambda: tmp_path / "worker")
    real = Storage.get
    monkeypatch.setattr(Storage, "get", lambda self, name, folder: (fetched.append(name), real(self, name, folder))[1])
    job = Job(
        kind="trial",
        key="full-s0",
        settings=experiment.model_dump(mode="json"),
        settings_hash=experiment.result_hash(),
        tokens=str(cache / "tokens" / "abc"),
        folder=str(tmp_path / "driver" / "study" / "trials" / "full-s0"),
        storage=storage.address,
        cached=tuple(parts),
        kept="studies/1/full-s0",
    )
    found: list[Job] = []
    workers = [threading.Thread(target=lambda: found.append(brought_here(job, storage))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 4 and sorted(fetched) == sorted(parts)
    here = found[0]
    assert Path(here.tokens, "inner", "codes").read_text() == "codes"
    assert Path(here.settings["evaluation"]["extractor_path"]).read_text() == "weights"
    assert here.folder == str(tmp_path / "worker" / "studies" / "1" / "full-s0")
    assert str(tmp_path / "driver") not in str([here.settings, here.tokens, here.folder])
    assert make_experiment(here.settings, {}, where="test").result_hash() == job.settings_hash
    FileSystem.from_uri(storage.address)[0].delete_dir(f"{tmp_path}/storage/tokens")
    monkeypatch.setattr(storage_module, "scratch", lambda: tmp_path / "another worker")
    with pytest.raises(StorageError, match="has lost tokens/abc; `reco-tune resume` lays it there again"):
        brought_here(job, storage)
