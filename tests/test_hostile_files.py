"""Files of strangers: nothing in them is run, and no path in them leads out of their folder."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from standin_tokenizers import forget, write_larp, write_omnitokenizer

import reco_tune
from reco_tune.data.token_cache import MANIFEST, TokenCache
from reco_tune.errors import DataError, ReCoTuneError
from reco_tune.settings import Tokenizer, load_experiment
from reco_tune.tokenizers import open_pretrained
from reco_tune.tokenizers.pretrained import load_checkpoint

SOURCES = sorted(Path(reco_tune.__file__).parent.rglob("*.py"))


class _Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
def test_a_checkpoint_with_a_program_in_it_is_not_run(tmp_path: Path, zipped: bool) -> None:
    mark, path = tmp_path / "ran", tmp_path / "evil.ckpt"
    torch.save(
        {"state_dict": {"w": torch.ones(2)}, "callbacks": _Bomb(mark)}, path, _use_new_zipfile_serialization=zipped
    )
    with pytest.raises(
        DataError, match=r"evil\.ckpt is not loaded, .* holds more than tensors and plain values \((posix|nt)\.system\)"
    ) as error:
        load_checkpoint(path)
    assert not mark.exists() and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content", [b"", b"abc", b"\x80\x02garbage", pickle.dumps([1])], ids=["empty", "text", "cut", "plain pickle"]
)
def test_a_damaged_checkpoint_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.pth").write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.pth cannot be read as a PyTorch checkpoint; download it again"):
        load_checkpoint(tmp_path / "bad.pth")


@pytest.mark.parametrize("kind", ["omnitokenizer", "larp"])
def test_the_weights_of_a_tokenizer_run_nothing(tmp_path: Path, kind: str) -> None:
    mark = tmp_path / "ran"
    if kind == "larp":
        code, _, checkpoint = write_larp(tmp_path / "l")
    else:
        code, checkpoint = write_omnitokenizer(tmp_path / "o")
    torch.save(
        {"state_dict": {}, "hyper_parameters": _Bomb(mark), "model": {"args": {}, "sd": _Bomb(mark)}}, checkpoint
    )
    with pytest.raises(DataError, match="could run any code"):
        open_pretrained(Tokenizer(kind=kind, path=str(code), checkpoint=str(checkpoint)))
    assert not mark.exists()
    forget("OmniTokenizer", "models", "pretend_lightning")


def test_a_yaml_file_makes_no_objects(tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text(f"data: !!python/object/apply:os.system ['touch {tmp_path / 'ran'}']\n")
    with pytest.raises(ReCoTuneError, match="is not YAML"):
        load_experiment(tmp_path / "e.yaml")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda text, outside: {"tokenizer": "../../../elsewhere"},
        lambda text, outside: {"tokenizer": str(outside)},
        lambda text, outside: {"shapes": {**text["shapes"], "../../../elsewhere/array": [3]}},
        lambda text, outside: {"shapes": {**text["shapes"], str(outside / "array"): [3]}},
    ],
    ids=["tokenizer above", "tokenizer by its whole path", "array above", "array by its whole path"],
)
def test_no_path_of_a_manifest_leads_out_of_the_cache_folder(
    toy_cache: TokenCache, tmp_path: Path, change: Callable[[dict[str, object], Path], dict[str, object]]
) -> None:
    (tmp_path / "elsewhere").mkdir()
    np.save(tmp_path / "elsewhere" / "array.npy", np.zeros(3))
    path = tmp_path / "cache" / "tokens" / "toy"
    shutil.copytree(toy_cache.path, path)
    text = json.loads((path / MANIFEST).read_text())
    TokenCache.open(path)
    (path / MANIFEST).write_text(json.dumps({**text, **change(text, tmp_path / "elsewhere")}))
    with pytest.raises(DataError, match=r"toy is damaged .*a path inside its folder"):
        TokenCache.open(path)


def test_an_array_of_objects_is_not_unpickled(toy_cache: TokenCache, tmp_path: Path) -> None:
    path = tmp_path / "cache" / "tokens" / "toy"
    shutil.copytree(toy_cache.path, path)
    name = next(path.glob("*labels*.npy"))
    np.save(name, np.array([_Bomb(tmp_path / "ran")] * 3, dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="is damaged"):
        TokenCache.open(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("pattern", "allowed"),
    [
        (r"torch\.load\((?!.*weights_only=True)", set()),
        (
            r"\b(import|from) (pickle|cloudpickle|joblib|dill|shelve|marshal)\b(?! import UnpicklingError)",
            {"processes.py", "drawing.py"},
        ),
        (r"yaml\.(load|full_load|unsafe_load)\(", set()),
        (r"allow_pickle=True|trust_remote_code|(?<![.\w])(eval|exec)\(", set()),
        (r"torch\.jit\.load", {"cosmos.py", "i3d.py"}),
        (r"sys\.path\.insert", {"pretrained.py"}),
    ],
    ids=["torch.load", "pickle", "yaml", "eval and its kin", "TorchScript", "authors' code"],
)
def test_what_runs_files_stands_only_where_it_is_documented(pattern: str, allowed: set[str]) -> None:
    """TorchScript and the code of authors are a user's decision to trust a source.

    docs/how-to/pretrained-tokenizers.md and docs/reference/fvd-protocols.md say so.

    `processes.py` and `drawing.py` pickle what they say to processes of their own; they read no file.
    """
    found = {
        path.name
        for path in SOURCES
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(pattern, line)
    }
    assert found <= allowed
