"""CLIP score, by a small CLIP of the real class with random weights; no published weights were at hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from reco_tune.errors import SettingsError
from reco_tune.evaluation.clip_score import ClipScore, clip_protocol
from reco_tune.settings import Experiment

transformers = pytest.importorskip("transformers")

PROMPTS = ["a 3 moves left", "a 7 stands still", "a 3 moves left and up"]
VIDEO = torch.randint(256, (3, 5, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
CPU = torch.device("cpu")


def tiny_clip(folder: Path, seed: int = 0) -> Path:
    """What `save_pretrained` writes of a model, its tokenizer of letters, and its processor of images of 16 px."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + [str(digit) for digit in range(10)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
    part = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={**part, **ends, "vocab_size": len(words), "max_position_embeddings": 16},
        vision_config={**part, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    torch.manual_seed(seed)
    transformers.CLIPModel(config).save_pretrained(folder)
    transformers.CLIPTokenizer(vocab={word: place for place, word in enumerate(words)}, merges=[]).save_pretrained(
        folder
    )
    transformers.CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("clip"))


def theirs(folder: Path, frame: int) -> torch.Tensor:
    """Cosines [3] of each clip's frame and its text, as transformers' own forward computes them."""
    model = transformers.CLIPModel.from_pretrained(folder)
    images = transformers.CLIPImageProcessorPil.from_pretrained(folder)
    shown = [np.ascontiguousarray(clip[frame].permute(1, 2, 0).numpy()) for clip in VIDEO]
    words = transformers.AutoTokenizer.from_pretrained(folder)
    told = words(PROMPTS, padding=True, truncation=True, max_length=16, return_tensors="pt")
    with torch.no_grad():
        found = model(pixel_values=images(shown, return_tensors="pt")["pixel_values"], **told)
    return (found.logits_per_image / model.logit_scale.exp()).diagonal().double()


def test_it_is_the_cosine_of_their_own_forward(folder: Path) -> None:
    """float32: 1e-6."""
    by_frame = torch.stack([theirs(folder, frame) for frame in range(5)])
    assert by_frame.std() > 1e-3, "frames and texts differ"
    score: Callable[[str, str], torch.Tensor] = lambda frames, scale: ClipScore(str(folder), frames, scale, CPU)(  # noqa: E731
        VIDEO, PROMPTS
    )
    assert torch.allclose(score("all", "cosine"), by_frame.mean(dim=0), rtol=0, atol=1e-6)
    assert torch.allclose(score("first", "cosine"), by_frame[0], rtol=0, atol=1e-6)
    assert torch.allclose(score("all", "percent"), (100 * by_frame.mean(dim=0)).clamp(min=0), rtol=0, atol=1e-4)


def test_a_batch_changes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score = ClipScore(str(folder), "all", "cosine", CPU)
    whole = score(VIDEO, PROMPTS)
    monkeypatch.setattr("reco_tune.evaluation.clip_score.IMAGES_AT_ONCE", 4)
    parts = torch.cat([score(VIDEO[number : number + 1], PROMPTS[number : number + 1]) for number in range(3)])
    assert torch.allclose(parts, whole, rtol=0, atol=1e-6)


def test_the_protocol_names_model_scale_and_frames(
    folder: Path, toy_experiment: Callable[..., Experiment], tmp_path: Path
) -> None:
    """Scores of other weights under the same name have stood in one table."""
    text = {"model.condition": "text", "evaluation.clip": str(folder)}
    other = {**text, "evaluation.clip": str(tiny_clip(tmp_path / folder.name, seed=1))}
    told = [
        clip_protocol(toy_experiment(changes))
        for changes in (
            text,
            other,
            {**text, "evaluation.clip_scale": "cosine"},
            {**text, "evaluation.clip_frames": "first"},
        )
    ]
    assert len(set(told)) == 4 and all(one.startswith(f"CLIP {folder.name} ") for one in told)
    assert told[0].endswith("percent all") and clip_protocol(toy_experiment()) == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"evaluation.clip": "x"}, r"evaluation\.clip \(x\) is of captions"),
        ({"evaluation.clip": "x", "model.condition": "text", "evaluation.clip_scale": "logit"}, "clip_scale"),
    ],
    ids=["no texts", "scale"],
)
def test_wrong_settings_are_one_sentence(
    toy_experiment: Callable[..., Experiment], changes: dict[str, object], words: str
) -> None:
    with pytest.raises(SettingsError, match=words):
        toy_experiment(changes)


def test_what_is_no_clip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"evaluation\.clip .*cannot load this CLIP"):
        ClipScore(str(tmp_path), "all", "percent", CPU)


def test_weights_that_are_missing_are_refused(tmp_path: Path) -> None:
    """transformers fills them at random: the score would be noise."""
    file = tiny_clip(tmp_path) / "model.safetensors"
    save_file(
        {name: held for name, held in load_file(file).items() if "text_projection" not in name}, file, {"format": "pt"}
    )
    with pytest.raises(SettingsError, match=r"no weights for text_projection\.weight, which would be random"):
        ClipScore(str(tmp_path), "all", "percent", CPU)


def test_another_tokenizer_is_another_protocol(toy_experiment: Callable[..., Experiment], tmp_path: Path) -> None:
    """It cuts the same text into other words, and the score differs."""
    text = {"model.condition": "text", "evaluation.clip": str(tiny_clip(tmp_path))}
    before = clip_protocol(toy_experiment(text))
    file = tmp_path / "tokenizer.json"
    file.write_text(file.read_text().replace('"a": 0', '"a": 1').replace('"b": 1', '"b": 0'))
    assert clip_protocol(toy_experiment(text)) != before
