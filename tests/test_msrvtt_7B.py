"""The shipped space of a 7B model from text to video: what it forecasts, and itself, shrunk, on two gloo workers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from reco_tune.bundled import bundled
from reco_tune.cost import ASSUMED_GPU, forecast, memory_by_phase, plan
from reco_tune.data.synthetic import digit_captions
from reco_tune.data.token_cache import TokenCache
from reco_tune.model.flops import parameter_count
from reco_tune.preparation import prepare_tokens
from reco_tune.settings import Experiment, arm_experiment, load_space
from reco_tune.training import fit
from reco_tune.training.schemes import plan_scheme

SPACE = bundled("search_spaces") / "msrvtt_7B.yaml"
SHRUNK = [
    *("data.clip_frames=9", "data.size_px=12", "data.clips_per_video=1", "tokenizer.kind=kmeans"),
    *("tokenizer.spatial_stride=4", "tokenizer.temporal_stride=2", "tokenizer.num_codes=64"),
    *("tokenizer.first_frame_codes=24", "tokenizer.fit_clips=40"),
    *("model.width=32", "model.depth=2", "model.heads=2", "model.text_tokens=8", "training.steps=6"),
    *("training.batch_size=8", "training.micro_batches=2", "training.rungs=2", "training.warmup_steps=0"),
    *("training.loss_chunk_tokens=10", "resources.gpus_per_worker=0", "evaluation.reference_clips=20"),
    *("evaluation.samples=20", "evaluation.validation_clips=13"),
]
WORKER = """
import json, sys
from pathlib import Path
from reco_tune.data.token_cache import TokenCache
from reco_tune.settings import make_experiment
from reco_tune.training import fit, joined
experiment = make_experiment(json.loads(sys.argv[1]), {}, where="test")
with joined(experiment) as group:
    result = fit(experiment, TokenCache.open(Path(sys.argv[2])), Path(sys.argv[3]) / "run", group=group)
    if group.leads:
        (Path(sys.argv[3]) / "metrics.json").write_text(json.dumps(result.metrics))
"""


def test_its_forecast_is_what_the_file_says() -> None:
    """GPU-hours of A100s, and memory of each GPU, of a model that is as large as Llama 7B."""
    planned = plan(load_space(SPACE))
    shape = plan_scheme(planned.baseline).model_settings
    assert parameter_count(shape) == pytest.approx(6.5e9, rel=0.02) and shape.condition_tokens == 32
    assert planned.baseline.grid.num_tokens == 5120 and planned.kinds["reco"].window.length_tokens == 2048
    hours = {run.trial: run.device_seconds / 3600 for run in forecast(planned, ASSUMED_GPU).runs}
    told = SPACE.read_text(encoding="utf-8")
    baseline, window, everything, most = map(
        float, re.search(r"about (\d+) A100-hours .* (\d+) for .* (\d+) for every.* (\d+) GiB", told, re.S).groups()
    )
    assert hours["full-s0"] == pytest.approx(baseline, rel=0.02)
    assert hours["reco-equal_steps-s0"] == pytest.approx(window, rel=0.02)
    assert sum(hours.values()) == pytest.approx(everything, rel=0.02)
    needed = memory_by_phase(planned.kinds["reco"], planned.baseline)
    assert needed.largest()[1] / 2**30 == pytest.approx(most, rel=0.02)


@pytest.fixture(scope="module")
def shrunk(
    digits: tuple[Experiment, TokenCache], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Experiment, TokenCache]:
    """Moving digits in the folders and JSON of MSR-VTT."""
    folder = tmp_path_factory.mktemp("msrvtt")
    root, videos = folder / "data", Path(digits[1].path).parents[1] / "videos"
    (root / "videos" / "all").mkdir(parents=True)
    notes: dict[str, list[dict[str, object]]] = {"videos": [], "sentences": []}
    captions = digit_captions(digits[0].data)
    for number, (name, caption) in enumerate([*captions.items()][:60]):
        (root / "videos" / "all" / f"video{number}.mp4").symlink_to(next(videos.glob(f"*/UCF-101/{name}")))
        split = "train" if number < 40 else "test"
        notes["videos"].append({"video_id": f"video{number}", "split": split, "category": number % 3})
        for said in (caption, f"there {caption}"):
            notes["sentences"].append({"video_id": f"video{number}", "caption": said})
    (root / "MSRVTT_data.json").write_text(json.dumps(notes))
    where = [f"data.root={root}", f"data.cache_dir={folder / 'cache'}"]
    split = [*SHRUNK, *where, "resources.workers=2", "resources.shard_state=true"]
    experiment = arm_experiment(load_space(SPACE, split), "reco")
    return experiment, prepare_tokens(experiment)


def test_it_runs_shrunk_on_two_workers(shrunk: tuple[Experiment, TokenCache], tmp_path: Path) -> None:
    """Windows after words, of a state that is split, with what saves memory; as one worker does it."""
    experiment, cache = shrunk
    assert experiment.model.condition == "text" and experiment.resources.shard_state
    assert experiment.training.activation_checkpointing and experiment.training.precision == "bfloat16"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    (tmp_path / "worker.py").write_text(WORKER)
    told = [str(tmp_path / "worker.py"), experiment.model_dump_json(), str(cache.path), str(tmp_path)]
    subprocess.run([*command, *told], check=True, timeout=300)
    two = json.loads((tmp_path / "metrics.json").read_text())["val_cross_entropy"]
    resources = experiment.resources.model_copy(update={"workers": 1, "shard_state": False})
    alone = experiment.model_copy(update={"resources": resources})
    one = fit(alone, cache, tmp_path / "one").metrics["val_cross_entropy"]
    assert np.isfinite(two) and two == pytest.approx(one, rel=2e-2), "products in bfloat16"


def test_all_captions_of_a_video_are_prompts(shrunk: tuple[Experiment, TokenCache]) -> None:
    experiment, cache = shrunk
    prompts = cache.captions(experiment.captions_name).prompts("test", 20, 45)
    texts = [text for _, text in prompts]
    assert not any(text.startswith("there") for text in texts[:20]) and texts[40:] == texts[:5]
    assert all(text.startswith("there") for text in texts[20:40])
