"""Clips as codes on disk: what training and evaluation read. Knows nothing of videos or of how codes are made.

A cache is a folder: `manifest.json` (schema, fingerprints, shapes), one `.npy` per array, `clips.csv` (which frames of which video each
row is) and `skipped.csv`. It appears whole or not at all; only arrays of pieces are added later, each whole.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import socket
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from reco_tune.data.clips import Clip, Skipped
from reco_tune.data.layouts import SPLITS, Split
from reco_tune.errors import DataError
from reco_tune.settings import TokenGrid

SCHEMA = 1
MANIFEST = "manifest.json"
_KIND = "reco-tune token cache"


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
        self._shapes: dict[str, tuple[int, ...]] = {name: tuple(shape) for name, shape in manifest["shapes"].items()}

    @classmethod
    def open(cls, path: Path) -> Self:
        """
        Raises:
            DataError: if `path` is missing, no token cache, of another version, or damaged.
        """
        path = Path(path)
        if not (path / MANIFEST).is_file():
            raise DataError(
                f"{path} holds no token cache ({MANIFEST} is missing); run `reco-tune tokenize` or delete the folder and run again"
            )
        try:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(_damaged(path, f"{MANIFEST} is not readable JSON")) from error
        if not isinstance(manifest, dict) or manifest.get("kind") != _KIND:
            raise DataError(f"{path} is not a token cache of ReCo-Tune; delete the folder {path.name} or give data.cache_dir another one")
        if manifest.get("schema") != SCHEMA:
            raise DataError(
                f"{path} was written in version {manifest.get('schema')} of the token cache, this program reads {SCHEMA}; "
                f"delete the folder {path.name} and run again"
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

    def tokens(self, split: Split) -> np.ndarray:
        """int32 [N, T]: each clip's codes in raster order (block, row, column)."""
        name = f"{split}.tokens"
        return self._array(name, self._shapes[name])

    def labels(self, split: Split) -> np.ndarray:
        """int64 [N]: places in `class_names`."""
        name = f"{split}.labels"
        return np.array(self._array(name, self._shapes[name]))

    def clips(self, split: Split) -> np.ndarray:
        """uint8 [M, F, C, H, W]: pixels of the first M <= N clips."""
        name = f"{split}.clips"
        return self._array(name, self._shapes[name])

    def pieces(self, split: Split, blocks: int) -> np.ndarray:
        """int32 [N, P, blocks * rows * columns]: every sub-clip of `blocks` blocks, encoded by itself; P = grid.blocks - blocks + 1.

        Raises:
            DataError: if pieces of that length were not made.
        """
        if not self.has_pieces(blocks):
            raise DataError(
                f"{self.path} has no pieces of {blocks} blocks; run `reco-tune tokenize` with a fewer_frames window of that length"
            )
        return self._array(_piece_name(split, blocks), self.piece_shape(split, blocks))

    def has_pieces(self, blocks: int) -> bool:
        return all((self.path / f"{_piece_name(split, blocks)}.npy").exists() for split in SPLITS)

    def piece_shape(self, split: Split, blocks: int) -> tuple[int, int, int]:
        """N, P and the tokens of one piece."""
        return self._shapes[f"{split}.tokens"][0], self.grid.blocks - blocks + 1, blocks * self.grid.tokens_per_block

    def sources(self, split: Split) -> list[Clip]:
        """Which frames of which video each row is."""
        try:
            with (self.path / "clips.csv").open(newline="", encoding="utf-8") as file:
                rows = [row for row in csv.DictReader(file) if row["split"] == split]
            return [Clip(Path(row["video"]), int(row["start"]), int(row["label"])) for row in rows]
        except (OSError, KeyError, ValueError) as error:
            raise DataError(_damaged(self.path, "clips.csv cannot be read")) from error

    def _array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        try:
            array = np.load(self.path / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(_damaged(self.path, f"{name}.npy is missing or cut off")) from error
        if array.shape != shape:
            raise DataError(_damaged(self.path, f"{name}.npy has shape {array.shape} where {shape} is recorded"))
        return array


class TokenCacheWriter:
    """Collects the arrays of a new cache in a hidden folder beside its final place; nothing is left behind if the block fails."""

    def __init__(self, parent: Path) -> None:
        self.folder = parent / f".writing-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:12]}"

    def __enter__(self) -> Self:
        _sweep(self.folder.parent)
        self.folder.mkdir(parents=True)
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def create(self, name: str, shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
        """A memory-mapped array to fill."""
        return create_array(self.folder / f"{name}.npy", shape, dtype)

    def keep_rows(self, name: str, rows: Sequence[int]) -> np.ndarray:
        """Drops all other rows of an array (clips that turned out broken)."""
        path = self.folder / f"{name}.npy"
        old = np.load(path, mmap_mode="r")
        kept = create_array(path.with_suffix(".kept.npy"), (len(rows), *old.shape[1:]), old.dtype.type)
        for new, row in enumerate(rows):
            kept[new] = old[row]
        path.with_suffix(".kept.npy").replace(path)
        return kept

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
    ) -> TokenCache:
        """Writes the lists and the manifest and puts the cache in its place; one that another process finished first stays."""
        _write_csv(
            self.folder / "clips.csv",
            ("split", "video", "start", "label"),
            [(split, clip.path, clip.start, clip.label) for split in SPLITS for clip in clips[split]],
        )
        _write_csv(self.folder / "skipped.csv", ("video", "reason"), skipped)
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
            "shapes": {file.stem: list(np.load(file, mmap_mode="r").shape) for file in sorted(self.folder.glob("*.npy"))},
            "skipped": [(str(video), reason) for video, reason in skipped],
        }
        (self.folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        try:
            self.folder.rename(path)
        except OSError:
            if not (path / MANIFEST).is_file():
                raise
        return TokenCache.open(path)


def create_array(path: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
    """A new memory-mapped `.npy` file to fill."""
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)


def add_pieces(cache: TokenCache, blocks: int, arrays: dict[Split, Path]) -> None:
    """Moves finished `.npy` files of pieces into the cache."""
    for split in SPLITS:
        arrays[split].replace(cache.path / f"{_piece_name(split, blocks)}.npy")


def _sweep(parent: Path) -> None:
    """Removes what killed processes of this machine left half-written."""
    host = f".writing-{socket.gethostname()}-"
    for left in parent.glob(f"{host}*"):
        pid = left.name.removeprefix(host).split("-")[0]
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            shutil.rmtree(left, ignore_errors=True)
        except (PermissionError, ValueError):
            continue


def _piece_name(split: Split, blocks: int) -> str:
    return f"{split}.pieces-{blocks}"


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def _damaged(path: Path, what: str) -> str:
    return f"the token cache {path} is damaged ({what}); delete the folder {path.name} and run again"
