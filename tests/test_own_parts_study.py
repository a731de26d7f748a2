"""All parts of the page "Extend" and a Hugging Face decoder go through one study; who reads its records needs none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from extension import write_extension
from test_parts import write_videos

HUGGING_FACE = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 8}


def told(found: dict[str, str], *words: str) -> None:
    done = subprocess.run([sys.executable, "-m", "reco_tune", *words], env=found, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_all_parts_go_through_a_study_and_its_report(tmp_path: Path) -> None:
    """The report is made again where none of the code can be imported."""
    pytest.importorskip("transformers")
    space, study = write_extension(tmp_path / "code"), tmp_path / "study"
    where = {"data.root": write_videos(tmp_path / "videos"), "data.cache_dir": tmp_path / "cache"}
    arm = {"arms.hf.model.kind": "huggingface"}
    arm |= {f"arms.hf.model.options.config.{key}": str(value) for key, value in HUGGING_FACE.items()}
    changes = [word for key, value in {**where, **arm}.items() for word in ("--set", f"{key}={value}")]
    paths = os.environ.get("PYTHONPATH", "")
    here = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), paths])}
    told(
        {**here, "PYTHONPATH": os.pathsep.join([str(space.parent), here["PYTHONPATH"]])},
        *("run", str(space), "--output", str(study), *changes),
    )
    space.parent.rename(tmp_path / "elsewhere")
    told(here, "status", str(study))
    told(here, "report", str(study))
    runs = pd.read_csv(study / "report" / "runs.csv").set_index("arm")
    assert set(runs.index) == {"full", "second_half", "hf", "search"} and set(runs["state"]) == {"evaluated"}
    assert runs["own_measure"].notna().all()
    assert runs.loc["second_half", "window.scheme"].startswith("mine.schemes:SecondHalf@")
    assert runs.loc["hf", "model.kind"] == "huggingface"
    assert runs.loc["search", "model.options.width"] != runs.loc["full", "model.options.width"]
