"""What machines without a shared file system give each other: folders come and go whole, and a dead storage is no run's
fault.
"""

from __future__ import annotations

import os
import tarfile
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyarrow.fs import FileSystem

from reco_tune.settings import Experiment, make_experiment
from reco_tune.study import storage as storage_module
from reco_tune.study import worker as worker_module
from reco_tune.study.dispatcher import Job
from reco_tune.study.storage import (
    RESULT,
    LocalFolders,
    Storage,
    StorageError,
    cached_parts,
    fetch_cache,
    fetch_results,
    fetch_run,
    store_run,
)
from reco_tune.training import Group

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


def test_a_single_file_has_one_name_whatever_it_was_called(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "i3d.pt").write_text("weights")
    storage.put(tmp_path / "i3d.pt", "i3d/abc")
    assert storage.get("i3d/abc", tmp_path / "here") and contents(tmp_path / "here") == {"file": "weights"}


def test_an_entry_can_stay_behind(storage: Storage, tmp_path: Path) -> None:
    source = folder_of(tmp_path / "run", history="steps")
    (source / "checkpoint").mkdir()
    (source / "checkpoint" / "tensors").write_text("large")
    storage.put(source, "run/results", without="checkpoint")
    assert storage.get("run/results", tmp_path / "here") and contents(tmp_path / "here") == {"inner/history": "steps"}


def test_half_an_archive_counts_for_nothing(tmp_path: Path) -> None:
    """Its writer was killed: the one before is still there, and the next one takes the place of both."""
    storage, place = Storage(f"file://{tmp_path}/storage"), tmp_path / "storage" / "trials" / "a"
    storage.put(folder_of(tmp_path / "first", one="1"), "trials/a")
    (whole,) = place.glob("*.tar")
    (place / "00000002-killed00.tar").write_bytes(whole.read_bytes()[:3000])
    assert storage.get("trials/a", tmp_path / "here") and contents(tmp_path / "here") == {"inner/one": "1"}
    storage.put(folder_of(tmp_path / "second", one="2"), "trials/a")
    assert sorted(path.name[:8] + path.suffix for path in place.iterdir()) == ["00000003.tar", "00000003.whole"]
    assert storage.get("trials/a", tmp_path / "here") and contents(tmp_path / "here") == {"inner/one": "2"}


def test_an_archive_that_is_replaced_while_it_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that took its place comes; it was "there is nothing", and a run began anew."""
    storage = Storage(f"file://{tmp_path}/storage")
    storage.put(folder_of(tmp_path / "first", one="1"), "trials/a")
    second, listed = folder_of(tmp_path / "second", one="2"), Storage.newest

    def newest(self: Storage, name: str) -> str | None:
        found = listed(self, name)
        monkeypatch.setattr(Storage, "newest", listed)
        self.put(second, name)
        return found

    monkeypatch.setattr(Storage, "newest", newest)
    assert storage.get("trials/a", tmp_path / "here") and contents(tmp_path / "here") == {"inner/one": "2"}


def test_what_cannot_be_read_whole_changes_nothing(tmp_path: Path) -> None:
    storage = Storage(f"file://{tmp_path}/storage")
    storage.put(folder_of(tmp_path / "first", one="1" * 50_000), "trials/a")
    (archive,) = (tmp_path / "storage" / "trials" / "a").glob("*.tar")
    archive.write_bytes(archive.read_bytes()[:20_000])
    here = folder_of(tmp_path / "here", one="kept")
    with pytest.raises(StorageError, match=r"the storage file://.* cannot be used"):
        storage.get("trials/a", here)
    assert contents(here) == {"inner/one": "kept"}


def test_an_archive_cannot_write_outside_its_folder(tmp_path: Path) -> None:
    storage = Storage(f"file://{tmp_path}/storage")
    storage.put(folder_of(tmp_path / "first", one="1"), "trials/a")
    (path,) = (tmp_path / "storage" / "trials" / "a").glob("*.tar")
    with tarfile.open(path, "w") as archive:
        archive.add(tmp_path / "first" / "inner" / "one", arcname="../outside")
    with pytest.raises(StorageError):
        storage.get("trials/a", tmp_path / "deep" / "here")
    assert not (tmp_path / "deep" / "outside").exists() and not (tmp_path / "outside").exists()


@pytest.mark.parametrize("address", ["ftp://server/folder", "no such thing", "s3a://bucket"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(StorageError, match=r"the storage .* cannot be used \(.*\); give resources.storage an address"):
        Storage(address)


def test_an_address_with_a_password() -> None:
    with pytest.raises(StorageError, match="must not contain a password") as told:
        Storage("s3://key:secret@bucket/folder")
    assert "secret" not in str(told.value)


def test_a_storage_that_takes_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot be used"):
        Storage(f"file://{tmp_path}/file").probe()


@pytest.mark.parametrize(
    "raised", [OSError("no route to host"), RuntimeError("503"), OSError(28, os.strerror(28))], ids=str
)
def test_whatever_its_packages_raise_is_its_own_fault(
    raised: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full storage too: it is not this machine's disk."""

    def fail(*_: object) -> None:
        raise raised

    storage = Storage(f"file://{tmp_path}/storage")
    monkeypatch.setattr(tarfile.TarFile, "add", fail)
    with pytest.raises(StorageError, match=r"the storage file://.* cannot be used"):
        storage.put(folder_of(tmp_path / "first", one="1"), "trials/a")
    assert not storage.holds("trials/a")


def test_a_full_disk_is_told_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28))

    storage = Storage(f"file://{tmp_path}/storage")
    storage.put(folder_of(tmp_path / "first", one="1"), "trials/a")
    monkeypatch.setattr(tarfile.TarFile, "extractall", full)
    with pytest.raises(OSError, match="No space left"):
        storage.get("trials/a", tmp_path / "here")


def test_a_machine_that_takes_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(
        StorageError, match=r"missing/reco-tune-\d+ on .* cannot be written to; set TMPDIR to another folder there"
    ):
        storage_module.scratch()


def test_a_run_travels_with_its_checkpoint_until_it_has_a_result(tmp_path: Path) -> None:
    storage, run, here = Storage(f"file://{tmp_path}/storage"), tmp_path / "run", tmp_path / "here"
    for name in ("checkpoint/step-1/tensors", "history.parquet"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(name)
    store_run(storage, "studies/1/full-s0", run)
    folder_of(here, stale="of an earlier attempt on this machine")
    fetch_run(storage, "studies/1/full-s0", here)
    assert sorted(contents(here)) == ["checkpoint/step-1/tensors", "history.parquet"]
    (run / RESULT).write_text("{}")
    (run / "checkpoint" / "step-1" / "tensors").write_text("not sent again")
    store_run(storage, "studies/1/full-s0", run)
    assert fetch_results(storage, "studies/1/full-s0", tmp_path / "driver")
    assert sorted(contents(tmp_path / "driver")) == ["history.parquet", RESULT]
    fetch_run(storage, "studies/1/full-s0", here)
    assert contents(here)["checkpoint/step-1/tensors"] == "checkpoint/step-1/tensors"
    storage.forget("studies/1/full-s0")
    fetch_run(storage, "studies/1/full-s0", here)
    assert not here.exists() and not fetch_results(storage, "studies/1/full-s0", tmp_path / "driver")


PUBLISHED = {"protocol": "stylegan-v", "samples": 4, "reference_clips": 4}


def job_of(storage: Storage, experiment: Experiment, cached: Iterable[str]) -> Job:
    """A job as a driver with the paths of `experiment` submits it."""
    return Job(
        kind="trial",
        key="full-s0",
        settings=experiment.model_dump(mode="json"),
        settings_hash=experiment.result_hash(),
        tokens=str(experiment.cache_dir / "tokens" / "abc"),
        folder=str(experiment.cache_dir.parent / "study" / "trials" / "full-s0"),
        storage=storage.address,
        cached=tuple(cached),
        stored="studies/1/full-s0",
    )


def test_a_job_finds_its_files_on_a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of one machine fetch a part once, and find everything that the driver has under folders of their own."""
    cache, weights = tmp_path / "driver" / "cache", tmp_path / "driver" / "my own name for i3d.pt"
    folder_of(cache / "tokens" / "abc", codes="codes")
    folder_of(cache / "tokenizers" / "def", weights="vq")
    weights.write_text("weights")
    evaluation = {**PUBLISHED, "extractor_path": str(weights)}
    experiment = make_experiment(
        {"data": {"cache_dir": str(cache), "clip_frames": 17}, "evaluation": evaluation}, {}, where="test"
    )
    storage, fetched = Storage(f"file://{tmp_path}/storage"), []
    parts = cached_parts(experiment, cache / "tokens" / "abc", [cache / "tokenizers" / "def"])
    for name, part in parts.items():
        storage.put(part, name)
    monkeypatch.setattr(storage_module, "scratch", lambda: tmp_path / "worker")
    real = Storage.get
    monkeypatch.setattr(Storage, "get", lambda self, name, folder: (fetched.append(name), real(self, name, folder))[1])
    job = job_of(storage, experiment, parts)
    found: list[LocalFolders] = []
    workers = [threading.Thread(target=lambda: found.append(fetch_cache(job, storage))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 4 and sorted(fetched) == sorted(parts)
    here = found[0]
    assert (here.tokens / "inner" / "codes").read_text() == "codes"
    assert here.experiment.cache_dir / "tokens" == here.tokens.parent
    assert (here.experiment.cache_dir / "tokenizers" / "def" / "inner" / "weights").read_text() == "vq"
    assert (
        here.experiment.evaluation.extractor_path is not None
        and here.experiment.evaluation.extractor_path.read_text() == "weights"
    )
    assert here.folder == tmp_path / "worker" / "studies" / "1" / "full-s0"
    assert str(tmp_path / "driver") not in str([here.experiment, here.tokens, here.folder])
    assert here.experiment.result_hash() == job.settings_hash
    FileSystem.from_uri(storage.address)[0].delete_dir(f"{tmp_path}/storage/tokens")
    monkeypatch.setattr(storage_module, "scratch", lambda: tmp_path / "another worker")
    with pytest.raises(StorageError, match=r"has lost tokens/abc-.*; `reco-tune resume` stores it again"):
        fetch_cache(job, storage)


def test_a_token_cache_that_has_grown_is_another_one(tmp_path: Path) -> None:
    """Pieces of another length are laid beside its other files when a study needs them."""
    experiment = make_experiment({"data": {"cache_dir": str(tmp_path / "cache")}}, {}, where="test")
    tokens = tmp_path / "cache" / "tokens" / "abc"
    folder_of(tokens, codes="codes")
    before = list(cached_parts(experiment, tokens, []))
    assert before == list(cached_parts(experiment, tokens, []))
    (tokens / "train.pieces-2.npy").write_text("pieces")
    assert list(cached_parts(experiment, tokens, [])) != before


def test_a_rank_that_is_told_of_a_result_trains_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first rank has the run's folder; what it finds there holds for all, or they would wait for each other
    for ever.
    """

    class SecondRank(Group):
        leads = False

        def broadcast_json(self, value: Any) -> Any:
            assert value is None
            return {"metrics": {"fvd": 1.0}, "curves": {}, "provenance": {}}

    experiment, storage = make_experiment({}, {}, where="test"), Storage(f"file://{tmp_path}/storage")
    here = LocalFolders(experiment, tmp_path, tmp_path / "run")
    monkeypatch.setattr(worker_module.Group, "current", SecondRank)
    monkeypatch.setattr(worker_module, "fetch_cache", lambda job, storage: here)
    monkeypatch.setattr(
        worker_module.TokenCache, "open", lambda path: SimpleNamespace(data_fingerprint="", tokenizer_fingerprint="")
    )
    monkeypatch.setattr(worker_module, "fit", lambda *_, **__: pytest.fail("it began to train"))
    worker_module.execute(
        job_of(storage, experiment, ["tokens/abc"]), worker_module.Hooks(None, job_of(storage, experiment, []), rank=1)
    )
    assert not here.folder.exists()
