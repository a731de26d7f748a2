"""Adds captions to a token cache, for models that are conditioned on text (`model.condition: text`)."""

from __future__ import annotations

from pathlib import Path

from reco_tune import settings
from reco_tune.data.captions import captions_of
from reco_tune.data.layouts import SPLITS
from reco_tune.data.texts import Captions, source_of, write_captions
from reco_tune.data.token_cache import TokenCache
from reco_tune.data.word_list import WORDS, HubTokenizer, TextTokenizer, WordList
from reco_tune.errors import DataError
from reco_tune.files import publish
from reco_tune.preparation.cache_paths import absolute_data
from reco_tune.progress import Progress


def add_captions(cache: TokenCache, experiment: settings.Experiment, progress: Progress) -> Captions:
    """The captions for the experiment's settings. They are created if they do not exist.

    Raises:
        SettingsError: if the layout has no captions.
        DataError: if a clip has no caption, or the captions or the folder of the text tokenizer have changed since the
            cache was made.
    """
    model, data = experiment.model, absolute_data(experiment)
    texts = captions_of(data, {split: cache.sources(split) for split in SPLITS}, experiment.grid)
    folder = cache.path / experiment.captions_name
    if not folder.exists():
        tokenizer: TextTokenizer
        if model.text_tokenizer == WORDS:
            tokenizer = WordList.fit(caption for captions in texts["train"] for caption in captions)
        else:
            tokenizer = HubTokenizer.open(model.text_tokenizer)
        publish(folder, lambda staging: write_captions(staging, texts, tokenizer, model.text_tokens, data.caption_rule))
    captions = Captions.open(folder)
    if captions.source != source_of(texts):
        raise DataError(
            f"the captions in {data.root} have changed since {folder} was made; restore them, or delete the folder"
            f" {folder.name} and begin a new study"
        )
    if (
        model.text_tokenizer != WORDS
        and Path(model.text_tokenizer).is_dir()
        and not captions.made_by(HubTokenizer.open(model.text_tokenizer))
    ):
        raise DataError(
            f"model.text_tokenizer ({model.text_tokenizer}) has changed since {folder} was made; restore it, or delete"
            f" the folder {folder.name} and begin a new study"
        )
    if captions.shortened:
        what = f"{captions.shortened} captions have more than {captions.length} words (model.text_tokens)"
        progress(1, 1, f"{what} and are cut at the end")
    return captions
