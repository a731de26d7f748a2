"""`spaces new` writes what a person would have had to find out: a study of real videos that loads, plans and fits."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_cli import here, refused, say  # noqa: F401 (a fixture)

from reco_tune.cli.new_space import Videos, space_text
from reco_tune.cost import plan, refuse_what_cannot_fit
from reco_tune.data.layouts import guess_layout
from reco_tune.errors import DataError
from reco_tune.settings import load_space

REAL = Path(__file__).resolve().parents[2] / "shared" / "videos"
MANY = Videos(Path("/data/mine"), "class_folders", "lists", 101, 9537, 1_700_000)
FEW = Videos(Path("/data/a b: c"), "flat", "time", 1, 7, 1251)
UNKNOWN = Videos(None, "class_folders", "time", 0, 0, 0)
SIZES = [(64, 17, False), (128, 17, False), (64, 17, True), (128, 33, True), (256, 17, True), (256, 33, True)]


@pytest.mark.parametrize("videos", [MANY, FEW, UNKNOWN], ids=["many", "few", "unknown"])
@pytest.mark.parametrize(("size", "frames", "gpu"), SIZES)
def test_what_is_written_is_a_study_of_real_videos(
    tmp_path: Path, videos: Videos, size: int, frames: int, gpu: bool
) -> None:
    """The documented path copied a toy, and would have trained UCF101 at 12 x 12 pixels without a word."""
    (tmp_path / "mine.yaml").write_text(space_text("mine.yaml", videos, size, frames, gpu))
    planned = plan(load_space(tmp_path / "mine.yaml"))
    shared, grid = planned.shared, planned.shared.grid
    assert (shared.data.root, shared.data.layout, shared.data.size_px) == (videos.root, videos.layout, size)
    assert shared.tokenizer.kind == "vq" and 300 <= grid.num_tokens <= 10_000
    assert shared.data.clip_frames == frames and grid.blocks == 1 + (frames - 1) // 4
    window = planned.arms["reco"].window.length_tokens
    assert window is not None and window / grid.num_tokens == pytest.approx(0.4, abs=0.05)
    assert {"full", "fewer_frames", "reco"} <= set(planned.arms)
    assert shared.evaluation.protocol == ("native" if gpu and videos is not FEW else "native-pca")
    assert shared.device_type == ("cuda" if gpu else "cpu")
    if gpu and frames == 17:
        refuse_what_cannot_fit(planned, 24 * 2**30, "a GPU of 24 GiB")


def test_few_videos_give_overlapping_clips_and_no_more_passes_than_the_paper_makes(tmp_path: Path) -> None:
    few, many = (yaml.safe_load(space_text("m", videos, 64, 17, True))["experiment"] for videos in (FEW, MANY))
    assert few["data"]["clip_stride"] == 1 and "clip_stride" not in many["data"]
    passes = few["training"]["steps"] * few["training"]["batch_size"] / (0.8 * FEW.frames)
    assert 250 < passes < 301 and many["training"]["steps"] == 20000
    assert "about 3 passes over 1,024 training clips" in space_text("m", MANY, 64, 17, False)


@pytest.mark.skipif(not REAL.is_dir(), reason="../shared/videos is absent")
@pytest.mark.parametrize("device", ["--cpu", "--gpu"])
def test_a_plan_of_it_passes_on_real_videos(here: Path, device: str) -> None:  # noqa: F811
    said = say("spaces", "new", "mine.yaml", "--root", str(REAL), device)
    assert (said.code, said.err) == (0, "") and "7 videos, 6 classes, about 1," in said.out
    planned = say("plan", "mine.yaml")
    assert (planned.code, planned.err) == (0, "") and "still missing" not in planned.out
    refused(say("spaces", "new", "mine.yaml", "--root", str(REAL)), "mine.yaml exists already")


LAYOUTS = {
    "class_folders": (["Dancing/a.mp4", "Cooking/b.mp4", "README.md"], "time"),
    "class_folders, divided": (["train/Dancing/a.mp4", "test/Dancing/b.mp4"], "lists"),
    "flat": (["a.mp4", "b"], "time"),
    "flat, divided": (["train/a.mp4", "test/b.mp4"], "lists"),
    "frames": (["one/000.jpg"], "time"),
    "frames, of classes": (["Dancing/one/000.jpg"], "time"),
    "ucf101": (["UCF-101/Archery/v_Archery_g01_c01.avi"], "time"),
    "ucf101, with lists": (["UCF-101/Archery/v_Archery_g01_c01.avi", "ucfTrainTestlist/trainlist01.txt"], "lists"),
    "csv": (["videos.csv"], "lists"),
    "faceforensics": (["train/images/000/1.jpg", "test/images/001/1.jpg"], "lists"),
    "skytimelapse": (["sky_train/a/b/1.jpg"], "lists"),
    "taichi": (["taichi-256/frames/train/a/1.png"], "lists"),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_the_layout_is_guessed_by_names(tmp_path: Path, case: str) -> None:
    names, split = LAYOUTS[case]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("path,split\n" if name.endswith(".csv") else "x")
    assert guess_layout(tmp_path) == (case.split(",")[0], split)


def test_a_folder_of_nothing_is_no_layout(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match="has no videos and no folders"):
        guess_layout(tmp_path)


REFUSED = {
    "no folder": (["--root", "nowhere"], r"nowhere\) is not a folder"),
    "nothing known": ([], "--root FOLDER is missing"),
    "a toy": (["--layout", "flat", "--size", "12"], "--size 12 must be a multiple of 8 from 32"),
    "frames between blocks": (["--layout", "flat", "--frames", "16"], "--frames 16 must be 1 more .* give 17"),
    "no layout of videos": (["--layout", "tokens"], "--layout tokens is not a layout of videos; take one of class_fo"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_and_nothing_written(here: Path, case: str) -> None:  # noqa: F811
    options, sentence = REFUSED[case]
    refused(say("spaces", "new", "mine.yaml", "--cpu", *options), sentence)
    assert list(here.iterdir()) == []


@pytest.mark.skipif(not REAL.is_dir(), reason="../shared/videos is absent")
def test_a_terminal_is_asked_what_no_option_says(tmp_path: Path) -> None:
    outer, inner = pty.openpty()
    program = [sys.executable, "-m", "reco_tune", "spaces", "new", "mine.yaml", "--frames", "33"]
    with subprocess.Popen(program, stdin=inner, stdout=inner, stderr=inner, cwd=tmp_path, env=dict(os.environ)) as done:
        os.write(outer, f"{REAL}\n128\nn\n".encode())
        assert done.wait(60) == 0
    os.close(inner)
    said = os.read(outer, 10_000).decode()
    os.close(outer)
    assert all(question in said for question in ("Folder of your videos", "Height and width in pixels", "on GPUs"))
    assert load_space(tmp_path / "mine.yaml").experiment["data"] | {"root": "", "train_clips": 0, "test_clips": 0} == {
        "root": "",
        "layout": "class_folders",
        "split": "time",
        "test_fraction": 0.2,
        "clip_frames": 33,
        "size_px": 128,
        "clip_stride": 1,
        "train_clips": 0,
        "test_clips": 0,
    }
