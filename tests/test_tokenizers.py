"""Both tokenizers behind one protocol: causality and round trips first, then what each is, then damage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from reco_tune import settings
from reco_tune.data.token_cache import TokenCache
from reco_tune.errors import DataError, SettingsError
from reco_tune.tokenizers import Tokenizer, fit_tokenizer, load_tokenizer
from reco_tune.tokenizers.base import check_frames
from reco_tune.tokenizers.kmeans import KMeansTokenizer, nearest, to_patches, to_pixels
from reco_tune.tokenizers.vector_quantized import (
    CodebookFit,
    VideoAutoencoder,
    bounded,
    level_codes,
    level_grid,
    straight_through,
)

KINDS = {
    "kmeans": settings.Tokenizer(
        kind="kmeans", spatial_stride=4, temporal_stride=2, num_codes=40, first_frame_codes=15
    ),
    "vq": settings.Tokenizer(
        kind="vq", spatial_stride=4, temporal_stride=2, num_codes=40, width=8, fit_steps=30, fit_batch_size=4
    ),
    "vq, odd stride": settings.Tokenizer(
        kind="vq", spatial_stride=3, temporal_stride=4, num_codes=40, width=8, fit_steps=5, fit_batch_size=4
    ),
    "fsq": settings.Tokenizer(
        kind="vq",
        quantizer="fsq",
        spatial_stride=4,
        temporal_stride=2,
        num_codes=240,
        width=8,
        fit_steps=30,
        fit_batch_size=4,
    ),
}


def _clips(number: int = 24, seed: int = 0) -> np.ndarray:
    """Coloured squares that move, uint8 [N, 9, 3, 12, 12]."""
    random = np.random.default_rng(seed)
    clips = np.zeros((number, 9, 3, 12, 12), np.uint8)
    for clip in clips:
        row, column, right = random.integers(0, 7), random.integers(0, 3), random.integers(0, 2)
        colour = random.integers(60, 256, (3, 1, 1))
        for frame in range(9):
            clip[frame, :, row : row + 5, column + right * (frame // 2) : column + right * (frame // 2) + 5] = colour
    return clips


@pytest.fixture(scope="module")
def fitted() -> Callable[[str], Tokenizer]:
    made: dict[str, Tokenizer] = {}

    def get(kind: str) -> Tokenizer:
        if kind not in made:
            made[kind] = fit_tokenizer(KINDS[kind], _clips())
        return made[kind]

    return get


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_frame_alone_has_the_codes_of_block_0(fitted: Callable[[str], Tokenizer], kind: str) -> None:
    tokenizer = fitted(kind)
    video = torch.from_numpy(_clips(seed=1))
    codes = tokenizer.encode(video)
    assert torch.equal(tokenizer.encode(video[:, :1]), codes[:, :1])


@pytest.mark.parametrize("kind", KINDS)
def test_no_code_depends_on_later_frames_and_no_pixel_on_later_codes(
    fitted: Callable[[str], Tokenizer], kind: str
) -> None:
    tokenizer = fitted(kind)
    video = torch.from_numpy(_clips(seed=1))
    codes = tokenizer.encode(video)
    frames = 1 + tokenizer.temporal_stride
    changed = video.clone()
    changed[:, frames:] = 255 - changed[:, frames:]
    assert torch.equal(tokenizer.encode(changed)[:, :2], codes[:, :2])
    assert not torch.equal(tokenizer.encode(changed), codes)
    short, long = tokenizer.decode(codes[:, :2]).int(), tokenizer.decode(codes)[:, :frames].int()
    assert (short - long).abs().max() <= 1  # a float32 sum may round to the next gray level


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_types_and_range(fitted: Callable[[str], Tokenizer], kind: str) -> None:
    tokenizer = fitted(kind)
    video = torch.from_numpy(_clips(5, seed=1))
    codes = tokenizer.encode(video)
    blocks, side = 1 + 8 // tokenizer.temporal_stride, 12 // tokenizer.spatial_stride
    assert (codes.shape, codes.dtype) == ((5, blocks, side, side), torch.int64)
    assert codes.min() >= 0 and codes.max() < tokenizer.num_codes == KINDS[kind].num_codes
    decoded = tokenizer.decode(codes)
    assert (decoded.shape, decoded.dtype) == (video.shape, torch.uint8)
    anything = torch.randint(tokenizer.num_codes, codes.shape, generator=torch.Generator().manual_seed(0))
    assert tokenizer.decode(anything).shape == video.shape, "a model may sample any code anywhere"
    with pytest.raises(ValueError, match="frames are not 1 more than a multiple"):
        tokenizer.encode(video[:, :2])


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_is_the_same(fitted: Callable[[str], Tokenizer], kind: str, tmp_path: Path) -> None:
    tokenizer = fitted(kind)
    tokenizer.save(tmp_path / "t")
    loaded = load_tokenizer(tmp_path / "t")
    video = torch.from_numpy(_clips(seed=1))
    assert loaded.fingerprint == tokenizer.fingerprint
    assert torch.equal(loaded.encode(video), tokenizer.encode(video))
    assert sorted(path.name for path in (tmp_path / "t").iterdir()) == ["tokenizer.json", "tokenizer.safetensors"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_fit_gives_the_same_bits_and_leaves_global_randomness_alone(
    fitted: Callable[[str], Tokenizer], kind: str
) -> None:
    state = torch.random.get_rng_state()
    again = fit_tokenizer(KINDS[kind], _clips())
    assert again.fingerprint == fitted(kind).fingerprint
    assert torch.equal(torch.random.get_rng_state(), state)


def test_patches_and_pixels_are_inverse() -> None:
    video = torch.randint(0, 256, (2, 8, 3, 12, 8), dtype=torch.uint8)
    patches = to_patches(video, side=4, frames=2)
    assert patches.shape == (2, 4, 3, 2, 2 * 4 * 4 * 3)
    assert torch.equal(to_pixels(patches, side=4, frames=2), video)
    assert torch.equal(patches[1, 2, 1, 0].reshape(2, 4, 4, 3), video[1, 4:6, :, 4:8, 0:4].permute(0, 2, 3, 1))


def test_kmeans_with_a_code_for_every_patch_is_lossless() -> None:
    clips = _clips(3)
    tokenizer = fit_tokenizer(settings.Tokenizer(num_codes=400, first_frame_codes=100), clips)
    video = torch.from_numpy(clips)
    codes = tokenizer.encode(video)
    assert torch.equal(tokenizer.decode(codes), video)
    assert codes[:, 0].max() < 100 <= codes[:, 1:].min(), "the two vocabularies share no code"


def test_kmeans_takes_the_nearest_centroid_exactly() -> None:
    """Against a distance in int64; 4 x 8 x 8 x 3 values overflow float32's whole numbers, 2 x 4 x 4 x 3 do not."""
    random = torch.Generator().manual_seed(0)
    for width in (96, 768):
        vectors = torch.randint(0, 256, (200, width), dtype=torch.uint8, generator=random)
        centroids = torch.randint(0, 256, (50, width), dtype=torch.uint8, generator=random)
        distances = (vectors[:, None].long() - centroids[None].long()).square().sum(-1)
        assert torch.equal(nearest(vectors, centroids), distances.argmin(1))


def test_kmeans_codes_do_not_depend_on_the_batch(fitted: Callable[[str], Tokenizer]) -> None:
    video = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (40, 9, 3, 12, 12), dtype=np.uint8))
    tokenizer = fitted("kmeans")
    assert torch.equal(torch.cat([tokenizer.encode(clip[None]) for clip in video]), tokenizer.encode(video))


def test_more_codes_reconstruct_better() -> None:
    video = torch.from_numpy(_clips(60))
    errors = []
    for codes in (10, 20, 40, 80):
        tokenizer = fit_tokenizer(settings.Tokenizer(num_codes=codes, first_frame_codes=codes // 2), video.numpy())
        errors.append((tokenizer.decode(tokenizer.encode(video)).float() - video).square().mean().item())
    assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0] / 2


def test_vq_learns() -> None:
    clips = _clips(64)
    values = settings.Tokenizer(
        kind="vq",
        spatial_stride=4,
        temporal_stride=2,
        num_codes=64,
        width=16,
        learning_rate=3e-3,
        fit_steps=100,
        fit_batch_size=8,
    )
    tokenizer = fit_tokenizer(values, clips)
    video = torch.from_numpy(clips)
    codes = tokenizer.encode(video)
    error = (tokenizer.decode(codes).float() - video).square().mean()
    assert error < 0.4 * video.float().var()
    assert len(codes.unique()) > 16


@pytest.fixture(scope="module", params=["vq", "fsq"])
def on_digits(
    request: pytest.FixtureRequest, digits: tuple[settings.Experiment, TokenCache]
) -> tuple[Tokenizer, TokenCache]:
    """A learned codebook, and a grid of levels with as many codes, each trained alike on the real digits."""
    _, cache = digits
    values = settings.Tokenizer(
        kind="vq", quantizer=request.param, num_codes=240, width=16, learning_rate=5e-3, fit_steps=200, fit_batch_size=8
    )
    return fit_tokenizer(values, np.array(cache.clips("train"))), cache


def test_learned_codes_and_levels_show_digits_they_have_not_seen(on_digits: tuple[Tokenizer, TokenCache]) -> None:
    """Seen: half the error of the best constant clip; 240 codes with perplexity 204 (vq), 158 with 68 (fsq). A collapse
    uses a few.
    """
    tokenizer, cache = on_digits
    video = torch.from_numpy(np.array(cache.clips("test"))).float()
    codes = tokenizer.encode(video.byte())
    constant = torch.from_numpy(np.array(cache.clips("train"))).float().mean(dim=0)
    assert (tokenizer.decode(codes) - video).square().mean() < 0.7 * (constant - video).square().mean()
    share = torch.bincount(codes.flatten(), minlength=tokenizer.num_codes) / codes.numel()
    used = share[share > 0]
    perplexity = float(torch.exp(-(used * used.log()).sum()))
    assert len(used) > tokenizer.num_codes / 4 and tokenizer.num_codes / 8 < perplexity < len(used)


def test_the_first_frame_of_a_digit_alone_has_the_codes_of_block_0_every_time(
    on_digits: tuple[Tokenizer, TokenCache],
) -> None:
    tokenizer, cache = on_digits
    video = torch.from_numpy(np.array(cache.clips("test")))
    codes = tokenizer.encode(video)
    assert torch.equal(tokenizer.encode(video[:, :1]), codes[:, :1])
    assert torch.equal(tokenizer.encode(video), codes)
    assert torch.equal(tokenizer.decode(codes), tokenizer.decode(codes))


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 11])
def test_vq_fits_in_any_number_of_steps(steps: int) -> None:
    values = settings.Tokenizer(
        kind="vq", spatial_stride=4, temporal_stride=2, num_codes=8, width=4, fit_steps=steps, fit_batch_size=2
    )
    assert fit_tokenizer(values, _clips(4)).num_codes == 8


def test_codes_that_nothing_uses_move_to_where_vectors_are() -> None:
    """Without this a codebook collapses: a code far from every vector is never chosen, so it never moves."""
    network = VideoAutoencoder(num_codes=8, spatial_stride=4, temporal_stride=2, width=4)
    codebook = CodebookFit(network.codebook, torch.Generator().manual_seed(0))
    vectors = torch.randn(4, 3, 3, 3, 16, generator=torch.Generator().manual_seed(1))
    network.codebook.fill_(1e3)
    for _ in range(3):
        codes = codebook.follow(network, vectors)
    assert len(codes.unique()) > 4
    assert torch.cdist(network.codebook, vectors.flatten(0, -2)).min(dim=1).values.max() < 6


@pytest.mark.parametrize(
    ("frames", "stride", "blocks"),
    [(1, 4, 1), (17, 4, 5), (9, 2, 5), (3, 1, 3)],
    ids=["one frame", "paper", "digits", "every frame"],
)
def test_blocks_by_hand(frames: int, stride: int, blocks: int) -> None:
    assert check_frames(frames, stride) == blocks


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "tokenizer.json").unlink(), "has no tokenizer"),
        (lambda path: (path / "tokenizer.json").write_text("{}"), "is damaged"),
        (lambda path: (path / "tokenizer.json").write_text("[1]"), "is damaged"),
        (lambda path: _edit(path, schema=7), "of version 7, but this program reads version 1"),
        (
            lambda path: _edit(path, settings={"spatial_stride": 2, "temporal_stride": 2}),
            "do not match its fingerprint",
        ),
        (lambda path: (path / "tokenizer.safetensors").write_bytes(b"abc"), "is damaged"),
        (lambda path: (path / "tokenizer.safetensors").unlink(), "is damaged"),
    ],
    ids=["missing", "no schema", "no mapping", "other version", "edited settings", "no weights", "lost weights"],
)
def test_unusable_tokenizers_are_one_sentence(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    path = tmp_path / "fitted"
    KMeansTokenizer(torch.zeros(2, 48, dtype=torch.uint8), torch.zeros(3, 96, dtype=torch.uint8), 4, 2).save(path)
    load_tokenizer(path)
    damage(path)
    with pytest.raises(DataError, match=f"fitted.*{message}.*; delete the folder fitted and run again"):
        load_tokenizer(path)


def _edit(path: Path, **changes: object) -> None:
    (path / "tokenizer.json").write_text(json.dumps({**json.loads((path / "tokenizer.json").read_text()), **changes}))


@pytest.mark.parametrize("num_codes", settings.FSQ_LEVELS)
def test_every_code_of_a_grid_is_its_own_vector(num_codes: int) -> None:
    levels = settings.FSQ_LEVELS[num_codes]
    grid = level_grid(levels)
    assert grid.shape == (num_codes, len(levels)) and grid.min() == -1 and grid.max() == 1
    assert torch.equal(level_codes(grid, levels), torch.arange(num_codes))


@pytest.mark.parametrize("levels", [(8, 6, 5), (7, 5, 5, 5, 5)], ids=str)
def test_bounded_vectors_reach_every_level_and_none_beyond(levels: tuple[int, ...]) -> None:
    """A sweep of each channel from far left to far right counts its levels up, and takes each for a part of the way."""
    sweep = torch.linspace(-20, 20, 4001)
    for channel, count in enumerate(levels):
        vectors = torch.zeros(len(sweep), len(levels))
        vectors[:, channel] = sweep
        digits = (bounded(vectors, levels)[:, channel] * (count // 2)).round() + count // 2
        assert digits.unique().tolist() == list(range(count)) and (digits.diff() >= 0).all()
    assert bounded(torch.zeros(1, len(levels)), levels).abs().max() < 1e-6  # float32


def test_rounding_to_levels_lets_the_gradient_of_the_bound_through() -> None:
    levels = (8, 6, 5)
    raw = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weights = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    vectors = bounded(raw, levels)
    quantized = level_grid(levels).double()[level_codes(vectors, levels)]
    rounded = straight_through(vectors, quantized)
    assert torch.allclose(rounded, quantized) and not torch.allclose(vectors, quantized)
    (through,) = torch.autograd.grad((rounded * weights).sum(), raw)
    (smooth,) = torch.autograd.grad((bounded(raw, levels) * weights).sum(), raw)
    assert torch.equal(through, smooth) and (through != 0).all()


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        pytest.param(
            {"kind": "vq", "num_codes": 256},
            r"num_codes \(256\) .*; use 240, the nearest of 240, 1000, 4375",
            id="codes",
        ),
        pytest.param(
            {"kind": "kmeans", "num_codes": 240},
            "fsq belongs to tokenizer.kind vq, not kmeans; leave it out",
            id="kind",
        ),
    ],
)
def test_levels_that_cannot_be_are_refused(wanted: dict[str, object], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        settings.make_experiment({"tokenizer": {"quantizer": "fsq", **wanted}}, {}, where="here")
