"""Adapters beside a small Llama from a folder, and texts as its condition, go through one study."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from reco_tune.training.checkpoint import load_model

transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
pytest.importorskip("peft")
test_huggingface, test_clip_score = pytest.importorskip("test_huggingface"), pytest.importorskip("test_clip_score")

RANK, CODES, WIDTH = 2, 24, 32
SPACE = f"""
question: Do windows keep what full sequences reach where adapters are trained?
experiment:
  data: {{layout: digits, clip_frames: 5, size_px: 12, train_clips: 64, test_clips: 32, cache_dir: AT/cache}}
  tokenizer: {{num_codes: {CODES}, first_frame_codes: 8, fit_clips: 64}}
  model:
    kind: huggingface
    condition: text
    text_tokens: 6
    text_tokenizer: AT/theirs
    options: {{path: AT/theirs, text_offset: 0, lora: {{rank: {RANK}}}}}
  window: {{length_blocks: 2, stride_fraction: 0.5}}
  training: {{steps: 12, batch_size: 8, rungs: 2, learning_rate: 3.0e-3}}
  evaluation: {{samples: 32, reference_clips: 64, validation_clips: 16, clip: AT/clip}}
arms:
  full:
  reco:
budgets: [equal_steps]
resources: {{calibration_seconds: 0.3}}
"""
CAPTIONED = [*"0123456789", "a", "moves", "stands", "still", "left", "right", "up", "down", "and"]


def save_language_model(folder: Path) -> None:
    """What `save_pretrained` writes of a model and of its tokenizer."""
    words = {word: place for place, word in enumerate(["[UNK]", *CAPTIONED])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]").save_pretrained(folder)
    test_huggingface.language_model("llama").save_pretrained(folder)


@pytest.mark.slow
def test_adapters_and_texts_go_through_a_study(tmp_path: Path) -> None:
    """What counts as trained is the adapters, the embedding and head of codes, and the state of "no text"."""
    save_language_model(tmp_path / "theirs")
    test_clip_score.tiny_clip(tmp_path / "clip")
    space, study = tmp_path / "space.yaml", tmp_path / "study"
    space.write_text(SPACE.replace("AT", str(tmp_path)))
    done = subprocess.run(
        [sys.executable, "-m", "reco_tune", "run", str(space), "--output", str(study)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    runs = pd.read_csv(study / "report" / "runs.csv").set_index("arm")
    assert set(runs.index) == {"full", "reco"} and set(runs["state"]) == {"evaluated"}
    sides = {"q": (WIDTH, 32), "k": (WIDTH, 16), "v": (WIDTH, 16), "o": (32, WIDTH)}
    sides |= {"gate": (WIDTH, 48), "up": (WIDTH, 48), "down": (48, WIDTH)}
    adapters = 2 * RANK * sum(map(sum, sides.values()))
    assert set(runs["trained_parameters"]) == {adapters + 2 * CODES * WIDTH + WIDTH}
    assert runs["clip_score"].notna().all() and runs["clip_score"].nunique() == 2
    assert runs.loc["reco", "training_flops"] < runs.loc["full", "training_flops"]
    table = pd.read_csv(study / "report" / "measures.csv").query("measure == 'clip_score'").set_index("arm")
    assert table["value"].to_dict() == runs["clip_score"].to_dict()
    theirs = load_file(tmp_path / "theirs" / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    for trial in sorted((study / "trials").iterdir()):
        assert not any("base_layer" in name for name in load_file(trial / "model" / "model.safetensors"))
        trained = dict(load_model(trial).model.named_parameters())
        assert torch.equal(trained["body.layers.1.mlp.up_proj.base_layer.weight"], theirs)
        assert trained["body.layers.1.mlp.up_proj.lora_B.default.weight"].any(), "it began at zero"
