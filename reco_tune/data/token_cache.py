"""The token cache: the codes of all clips on disk, for training and evaluation. Knows nothing of videos or
tokenizers.

A cache is a folder: `manifest.json` (schema, fingerprints, clip settings, shapes), one `.npy` per array, `clips.csv`
(the video and frames of each row), `skipped.csv` and `suspicious.csv`. The folder appears atomically, once it is
complete. Only arrays of pieces and captions (`texts`) are added later, each of them atomically too.

Until it is complete, the cache is a hidden folder beside its final place, with a journal of the finished parts. Each
part is synced to disk before the journal records it, so that a killed run can continue where it stopped.
"""

from __future__ import annotations

import csv
import errno
import fcntl
import json
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import numpy as np

from reco_tune.data.clips import Clip, Failure, Skipped
from reco_tune.data.layouts import SPLITS, Split
from reco_tune.data.texts import Captions
from reco_tune.errors import DataError
from reco_tune.files import LineWriter, write_json
from reco_tune.progress import Progress, quiet
from reco_tune.settings import TokenGrid

SCHEMA = 2
MANIFEST = "manifest.json"
_KIND = "reco-tune token cache"
NO_TOKENIZER = "none"
"""Recorded instead of a tokenizer folder in a cache of the user's own codes."""
_JOURNAL, _LOCK = "journal.jsonl", "lock"
ABANDONED_DAYS = 7
"""An unfinished preparation that no process holds is removed if nothing was written to it for this long."""
_ARRAY_NAME = re.compile(r"[\w-]+(\.[\w-]+)*")


class TokenCache:
    """An existing cache, read only; arrays are memory-mapped."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.fingerprint: str = manifest["fingerprint"]
        self.data_fingerprint: str = manifest["data_fingerprint"]
        self.tokenizer_fingerprint: str = manifest["tokenizer_fingerprint"]
        self.tokenizer_path: Path = (path / manifest["tokenizer"]).resolve()
        self.grid = TokenGrid(*manifest["grid"])
        self.num_codes: int = manifest["num_codes"]
        self.class_names: tuple[str, ...] = tuple(manifest["class_names"])
        self.skipped = [Skipped(Path(video), reason) for video, reason in manifest["skipped"]]
        self.suspicious = [Skipped(Path(video), reason) for video, reason in manifest["suspicious"]]
        self.clip_settings: dict[str, Any] = manifest["clip_settings"]
        """How the clips were cut."""
        self._shapes: dict[str, tuple[int, ...]] = {name: tuple(shape) for name, shape in manifest["shapes"].items()}
        if not self.tokenizer_path.is_relative_to(path.parent.parent.resolve()) or not all(
            map(_ARRAY_NAME.fullmatch, self._shapes)
        ):
            raise ValueError("a path inside its folder")

    @classmethod
    def open(cls, path: Path) -> Self:
        """
        Opens the cache in a folder.

        Raises:
            DataError: if `path` is missing, damaged, not a token cache, or of another version.
        """
        path = Path(path)
        if not (path / MANIFEST).is_file():
            raise DataError(
                f"{path} has no token cache ({MANIFEST} is missing); run `reco-tune tokenize`, or delete the folder and"
                " run again"
            )
        try:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(_damaged(path, f"{MANIFEST} is not readable JSON")) from error
        if not isinstance(manifest, dict) or manifest.get("kind") != _KIND:
            raise DataError(
                f"{path} is not a token cache of ReCo-Tune; delete the folder {path.name} or give data.cache_dir"
                " another one"
            )
        if manifest.get("schema") != SCHEMA:
            raise DataError(
                f"{path} has version {manifest.get('schema')} of the token cache, but this program reads version"
                f" {SCHEMA}; delete the folder {path.name} and run again"
            )
        try:
            cache = cls(path, manifest)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(_damaged(path, f"{MANIFEST} lacks {error}")) from error
        for name, shape in cache._shapes.items():
            cache._array(name, shape)
        return cache

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def has_pixels(self) -> bool:
        """Whether the cache has pixels. A cache of `data.layout: tokens` has none."""
        return self.tokenizer_path.name != NO_TOKENIZER

    def require_pixels(self) -> None:
        """
        Refuses a cache without pixels.

        Raises:
            DataError: if the cache holds only codes.
        """
        if not self.has_pixels:
            raise DataError(
                f"{self.path} holds only codes (data.layout tokens), and ReCo-Tune has no decoder for them: FVD,"
                " samples and reconstructions need videos; training, val_cross_entropy and the curves by frame do not"
            )

    def tokens(self, split: Split) -> np.ndarray:
        """int32 [N, T]: each clip's codes in raster order (block, row, column). On disk they have the shape of the
        grid.
        """
        name = f"{split}.tokens"
        codes = self._array(name, self._shapes[name])
        return codes.reshape(len(codes), self.grid.num_tokens)

    def labels(self, split: Split) -> np.ndarray:
        """int64 [N]: indices into `class_names`."""
        name = f"{split}.labels"
        return np.array(self._array(name, self._shapes[name]))

    def captions(self, name: str) -> Captions:
        """The captions that some settings made (`Experiment.captions_name`).

        Raises:
            DataError: if there are none.
        """
        return Captions.open(self.path / name)

    def clips(self, split: Split) -> np.ndarray:
        """uint8 [M, F, C, H, W]: pixels of the first M <= N clips."""
        name = f"{split}.clips"
        return self._array(name, self._shapes[name])

    def pieces(self, split: Split, blocks: int) -> np.ndarray:
        """int32 [N, P, blocks * rows * columns]: every sub-clip of `blocks` blocks, encoded by itself. P =
        grid.blocks - blocks + 1.

        Raises:
            DataError: if the cache has no pieces of that length.
        """
        if not self.has_pieces(blocks):
            raise DataError(
                f"{self.path} has no pieces of {blocks} blocks; run `reco-tune tokenize` with a fewer_frames window of"
                " that length"
            )
        return self._array(piece_name(split, blocks), self.piece_shape(split, blocks))

    def has_pieces(self, blocks: int) -> bool:
        return all((self.path / f"{piece_name(split, blocks)}.npy").exists() for split in SPLITS)

    def piece_shape(self, split: Split, blocks: int) -> tuple[int, int, int]:
        """Shape [N, P, tokens of one piece]."""
        return self._shapes[f"{split}.tokens"][0], self.grid.blocks - blocks + 1, blocks * self.grid.tokens_per_block

    def sources(self, split: Split) -> list[Clip]:
        """The video and frames of each row."""
        try:
            with (self.path / "clips.csv").open(newline="", encoding="utf-8") as file:
                rows = [row for row in csv.DictReader(file) if row["split"] == split]
            return [
                Clip(
                    Path(row["video"]),
                    int(row["start"]),
                    int(row["label"]),
                    int(row["frames"]) if row["frames"] else None,
                    row["flipped"] == "1",
                )
                for row in rows
            ]
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise DataError(_damaged(self.path, "clips.csv cannot be read")) from error

    def _array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        try:
            array: np.ndarray = np.load(self.path / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(_damaged(self.path, f"{name}.npy is missing or truncated")) from error
        if array.shape != shape:
            raise DataError(_damaged(self.path, f"{name}.npy has shape {array.shape} where {shape} is recorded"))
        return array


class TokenCacheWriter:
    """Collects the arrays of a new cache in a hidden folder beside its final place.

    With a `key`, the folder is locked, and a later call continues what a killed or failed call left in it. Without a
    key, the folder is removed if the `with` block fails.
    """

    def __init__(self, parent: Path, key: str | None = None, progress: Progress = quiet) -> None:
        self.folder = parent / (_own_name() if key is None else f".partial-{key}")
        self._resumable, self._progress = key is not None, progress
        self._stack = ExitStack()
        self._arrays: dict[str, np.memmap[Any, Any]] = {}
        self._journal: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        _sweep(self.folder, self._progress)
        if self._resumable:
            self._stack.enter_context(_locked(self.folder, self._progress))
        else:
            self.folder.mkdir(parents=True)
        self._notes = self._stack.enter_context(closing(LineWriter(self.folder / _JOURNAL)))
        self._journal = [json.loads(line) for line in (self.folder / _JOURNAL).read_text(encoding="utf-8").splitlines()]
        return self

    def __exit__(self, *_: object) -> None:
        self._arrays.clear()
        self._stack.close()
        if not self._resumable:
            shutil.rmtree(self.folder, ignore_errors=True)

    def done(self, stage: str) -> set[int]:
        """Numbers of the parts of a stage that an earlier call finished."""
        return {entry["part"] for entry in self._journal if entry["stage"] == stage}

    def failed(self, stage: str) -> list[Failure]:
        """Clips of a stage that could not be decoded, by index."""
        return sorted(
            Failure(*failure) for entry in self._journal if entry["stage"] == stage for failure in entry["failed"]
        )

    def equal(self) -> list[tuple[Path, int, int]]:
        """Every recorded run of equal frames."""
        return [(Path(video), first, last) for entry in self._journal for video, first, last in entry["equal"]]

    def note(
        self, stage: str, part: int, failed: Sequence[Failure] = (), equal: Sequence[tuple[Path, int, int]] = ()
    ) -> None:
        """Marks a part of a stage as done, after syncing its arrays to disk."""
        for array in self._arrays.values():
            array.flush()
        entry = {
            "stage": stage,
            "part": part,
            "failed": failed,
            "equal": [(str(video), *frames) for video, *frames in equal],
        }
        line = json.dumps(entry)
        self._notes.append(line)
        self._journal.append(json.loads(line))

    def remember(self, name: str, make: Callable[[], Any]) -> Any:
        """The value recorded by an earlier call that this one continues, else `make()`. It must be a JSON value."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            write_json(path, make())
        return json.loads(path.read_text(encoding="utf-8"))

    def create(self, name: str, shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
        """A memory-mapped array to fill. An existing one of the same shape is reused."""
        path = self.folder / f"{name}.npy"
        if not path.exists() or np.load(path, mmap_mode="r").shape != shape:
            create_array(path.with_suffix(".new.npy"), shape, dtype)
            path.with_suffix(".new.npy").replace(path)
        self._arrays[name] = np.load(path, mmap_mode="r+")
        return self._arrays[name]

    def keep_rows(self, name: str, rows: Sequence[int]) -> None:
        """Keeps only these rows of an array, to drop broken clips."""
        path = self.folder / f"{name}.npy"
        self._arrays.pop(name, None)
        old = np.load(path, mmap_mode="r")
        if len(old) == len(rows):
            return
        kept = create_array(path.with_suffix(".new.npy"), (len(rows), *old.shape[1:]), old.dtype.type)
        for new, row in enumerate(rows):
            kept[new] = old[row]
        path.with_suffix(".new.npy").replace(path)

    def finish(
        self,
        path: Path,
        *,
        fingerprint: str,
        data_fingerprint: str,
        tokenizer_fingerprint: str,
        tokenizer_path: Path,
        grid: TokenGrid,
        num_codes: int,
        class_names: Sequence[str],
        clips: Mapping[Split, Sequence[Clip]],
        skipped: Sequence[Skipped],
        suspicious: Sequence[Skipped] = (),
        clip_settings: Mapping[str, Any] | None = None,
    ) -> TokenCache:
        """Writes the lists and the manifest, then moves the cache into place. If another process finished first, its
        cache stays.
        """
        _write_csv(
            self.folder / "clips.csv",
            ("split", "video", "start", "label", "frames", "flipped"),
            [
                (split, clip.path, clip.start, clip.label, clip.frames, int(clip.flipped))
                for split in SPLITS
                for clip in clips[split]
            ],
        )
        self.write_list("skipped", skipped)
        self.write_list("suspicious", suspicious)
        manifest = {
            "kind": _KIND,
            "schema": SCHEMA,
            "fingerprint": fingerprint,
            "data_fingerprint": data_fingerprint,
            "tokenizer_fingerprint": tokenizer_fingerprint,
            "tokenizer": os.path.relpath(tokenizer_path, path),
            "grid": list(grid),
            "num_codes": num_codes,
            "class_names": list(class_names),
            "shapes": {
                file.stem: list(np.load(file, mmap_mode="r").shape) for file in sorted(self.folder.glob("*.npy"))
            },
            "skipped": [(str(video), reason) for video, reason in skipped],
            "suspicious": [(str(video), reason) for video, reason in suspicious],
            "clip_settings": dict(clip_settings or {}),
        }
        self._arrays.clear()
        for left in [
            self.folder / _LOCK,
            *self.folder.glob(_JOURNAL),
            *self.folder.glob("*.json"),
            *self.folder.glob("*.new.npy"),
        ]:
            left.unlink(missing_ok=True)
        (self.folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        try:
            self.folder.rename(path)
        except OSError:
            if not (path / MANIFEST).is_file():
                raise
        return TokenCache.open(path)

    def discard(self) -> None:
        """Removes the folder and its contents."""
        shutil.rmtree(self.folder)

    def write_list(self, name: str, rows: Sequence[Skipped]) -> Path:
        """`NAME.csv` of videos with reasons."""
        path = self.folder / f"{name}.csv"
        _write_csv(path, ("video", "reason"), rows)
        return path


def create_array(path: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
    """A new memory-mapped `.npy` file to fill. Its disk space is reserved, because a full disk would otherwise kill
    the process at a write (SIGBUS).

    Raises:
        OSError: if the disk has too little space.
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):  # missing on macOS
        with path.open("r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path)) from error
    return array


def add_pieces(cache: TokenCache, writer: TokenCacheWriter, blocks: int) -> None:
    """Moves finished arrays of pieces into the cache and removes their folder."""
    for split in SPLITS:
        (writer.folder / f"{piece_name(split, blocks)}.npy").replace(cache.path / f"{piece_name(split, blocks)}.npy")
    writer.discard()


@contextmanager
def _locked(folder: Path, progress: Progress) -> Iterator[None]:
    """Creates the folder and locks it against other processes."""
    while True:
        with suppress(FileExistsError):  # another process has just moved it away
            folder.mkdir(parents=True, exist_ok=True)
        with _lock_if_free(folder) as held:
            if held:
                yield
                return
        progress(0, 1, "waiting for another process that prepares the same data")
        time.sleep(0.2)


@contextmanager
def _lock_if_free(folder: Path) -> Iterator[bool]:
    """Whether this process now holds the lock of the folder. True where files cannot be locked."""
    try:
        handle = (folder / _LOCK).open("a")
    except FileNotFoundError:  # its owner has just finished and moved it away
        yield False
        return
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                yield False
                return
        try:
            same = os.path.samestat(os.fstat(handle.fileno()), (folder / _LOCK).stat())
        except FileNotFoundError:
            same = False
        yield same


def _own_name() -> str:
    """Name of a folder for this process alone. From the name, others can tell whether the process is still alive."""
    return f".writing-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:12]}"


def _sweep(own: Path, progress: Progress) -> None:
    """Removes half-written folders of killed processes of this machine beside `own`, and abandoned preparations of
    any machine.
    """
    host = f".writing-{socket.gethostname()}-"
    for left in own.parent.glob(f"{host}*"):
        pid = left.name.removeprefix(host).split("-")[0]
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            shutil.rmtree(left, ignore_errors=True)
        except (PermissionError, ValueError):
            continue
    for left in own.parent.glob(".partial-*"):
        with suppress(OSError):  # another user owns it, or it has just been moved away
            if left != own and (days := _days_untouched(left)) > ABANDONED_DAYS:
                _remove_unless_held(
                    left, f"removing an unfinished preparation from {days:.0f} days ago ({left.name})", progress
                )


def _days_untouched(folder: Path) -> float:
    return (time.time() - max(path.stat().st_mtime for path in (folder, *folder.iterdir()))) / 86_400


def _remove_unless_held(folder: Path, what: str, progress: Progress) -> None:
    """Moves the folder aside before removing it, so that another process never continues a half-removed one."""
    aside = folder.with_name(_own_name())
    with _lock_if_free(folder) as held:
        if not held:
            return
        folder.rename(aside)
    progress(0, 1, what)
    shutil.rmtree(aside, ignore_errors=True)
    progress(1, 1, what)


def piece_name(split: Split, blocks: int) -> str:
    return f"{split}.pieces-{blocks}"


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def _damaged(path: Path, what: str) -> str:
    return f"the token cache {path} is damaged ({what}); delete the folder {path.name} and run again"
