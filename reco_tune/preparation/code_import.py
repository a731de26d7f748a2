"""A token cache of codes that somebody made elsewhere (`data.layout: tokens`)."""

from __future__ import annotations

import numpy as np

from reco_tune import settings
from reco_tune.data.clips import PART_CLIPS, Clip, check_enough
from reco_tune.data.layouts import Split, data_fingerprint
from reco_tune.data.token_arrays import read_coded_clips, token_files
from reco_tune.data.token_cache import NO_TOKENIZER, TokenCache, TokenCacheWriter
from reco_tune.preparation.cache_paths import absolute_data, folder_name


def import_codes(experiment: settings.Experiment) -> TokenCache:
    """The cache of the codes under `data.root`, made where it does not exist; it holds no pixels.

    Raises:
        DataError: if the files are missing, of another shape or too few.
    """
    data = absolute_data(experiment)
    grid, num_codes = experiment.grid, experiment.tokenizer.num_codes
    source = data_fingerprint(token_files(data), data)
    made_elsewhere = folder_name("made elsewhere", str(num_codes), str(tuple(grid)))
    path = experiment.cache_dir / "tokens" / folder_name(source, made_elsewhere)
    if path.exists():
        return TokenCache.open(path)
    found, class_names = read_coded_clips(data, grid, num_codes)
    clips: dict[Split, list[Clip]] = {}
    with TokenCacheWriter(path.parent) as writer:
        for number, (split, (file, tokens, labels)) in enumerate(found.items()):
            check_enough(len(tokens), data, split, [])
            cap = data.train_clips if split == "train" else data.test_clips
            order = np.random.default_rng([data.seed, number]).permutation(len(tokens))[:cap]
            array = writer.create(f"{split}.tokens", (len(order), *grid.shape), np.int32)
            for start in range(0, len(order), PART_CLIPS):
                rows = order[start : start + PART_CLIPS]
                array[start : start + len(rows)] = tokens[rows].reshape(len(rows), *grid.shape)
            writer.create(f"{split}.labels", (len(order),), np.int64)[:] = labels[order]
            writer.create(f"{split}.clips", (0, data.clip_frames, 3, data.size_px, data.size_px), np.uint8)
            assert data.root is not None
            clips[split] = [Clip(file.relative_to(data.root), row, int(labels[row])) for row in order.tolist()]
        return writer.finish(
            path,
            fingerprint=path.name,
            data_fingerprint=source,
            tokenizer_fingerprint=made_elsewhere,
            tokenizer_path=experiment.cache_dir / "tokenizers" / NO_TOKENIZER,
            grid=grid,
            num_codes=num_codes,
            class_names=class_names,
            clips=clips,
            skipped=[],
            clip_settings=data.model_dump(mode="json", exclude={"root", "cache_dir"}),
        )
