"""The captions of a token cache as text tokens, for training and for prompts. They lie in one folder of the cache.

    captions.json             captions of every clip, and the settings that made them
    words.json                the word list; or tokenizer.json, a tokenizer of transformers
    train.npy, test.npy       int32 [captions, C]: text tokens, padded on the left

Text tokens are computed once. A clip with several captions has as many rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from reco_tune.data.layouts import SPLITS, Split
from reco_tune.data.word_list import TextTokenizer, load_text_tokenizer
from reco_tune.errors import DataError
from reco_tune.windows import PADDING

SCHEMA = 1
FILE = "captions.json"


class Captions:
    """The captions of an existing cache, read only."""

    def __init__(self, path: Path, description: dict[str, Any]) -> None:
        self.path = path
        self.fingerprint: str = description["fingerprint"]
        self.source: str = description["source"]
        """Hash of the captions themselves."""
        self.num_words: int = description["num_words"]
        self.length: int = description["length"]
        """C, the number of text tokens per caption."""
        self.rule: str = description["rule"]
        self.shortened: int = description["shortened"]
        """Number of captions that were cut at the end."""
        self._texts: dict[Split, list[list[str]]] = {split: description[split] for split in SPLITS}
        self._words: dict[Split, np.ndarray] = {
            split: np.load(path / f"{split}.npy", mmap_mode="r", allow_pickle=False) for split in SPLITS
        }
        self._first = {split: np.cumsum([0, *map(len, self._texts[split])], dtype=np.int64) for split in SPLITS}
        if any(self._words[split].shape != (self._first[split][-1], self.length) for split in SPLITS):
            raise ValueError("arrays of another shape")

    @classmethod
    def open(cls, path: Path) -> Captions:
        """
        Raises:
            DataError: if there are no captions, or they are damaged.
        """
        if not (path / FILE).is_file():
            raise DataError(f"{path.parent} holds no captions for these settings; run `reco-tune tokenize` with them")
        try:
            description = json.loads((path / FILE).read_text(encoding="utf-8"))
            if description["schema"] != SCHEMA:
                raise ValueError(f"version {description['schema']}")
            return cls(path, description)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"the captions {path} are damaged or of another version ({error}); delete the folder {path.name} and"
                " run again"
            ) from error

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        return load_text_tokenizer(self.path)

    def texts(self, split: Split) -> list[str]:
        """The first caption of every clip."""
        return [captions[0] for captions in self._texts[split]]

    def words(self, split: Split) -> np.ndarray:
        """int64 [N, C]: text tokens of the first caption of every clip."""
        return np.array(self._words[split][self._first[split][:-1]], dtype=np.int64)

    def encoded(self, texts: Sequence[str]) -> np.ndarray:
        """int64 [texts, C]: text tokens of any texts."""
        return padded([self.tokenizer.encode(text) for text in texts], self.length, self.num_words)

    def made_by(self, tokenizer: TextTokenizer) -> bool:
        """Whether the tokenizer gives the same text tokens. It compares the first caption of every clip."""
        return tokenizer.num_words == self.num_words and all(
            np.array_equal(
                self.words(split),
                padded([tokenizer.encode(text) for text in self.texts(split)], self.length, self.num_words),
            )
            for split in SPLITS
        )

    def drawn(self, split: Split, clips: np.ndarray, draws: np.random.Generator) -> np.ndarray:
        """int64 [clips, C]: text tokens of one caption of each clip, drawn uniformly."""
        first, counts = self._first[split][clips], np.diff(self._first[split])[clips]
        rows = first + (draws.random(len(clips)) * counts).astype(np.int64)
        return np.array(self._words[split][rows], dtype=np.int64)

    def prompts(self, split: Split, clips: int, count: int) -> list[tuple[int, str]]:
        """`count` captions, each with the index of its clip: the first caption of every clip, then every second
        caption, and so on. Starts over if there are too few.
        """
        texts = self._texts[split][:clips]
        most = max(map(len, texts), default=0)
        order = [(clip, own[place]) for place in range(most) for clip, own in enumerate(texts) if place < len(own)]
        return [order[place % len(order)] for place in range(count)]


def write_captions(
    folder: Path, texts: Mapping[Split, list[list[str]]], tokenizer: TextTokenizer, length: int, rule: str
) -> None:
    """Computes the text tokens of all captions and writes them with the settings that made them."""
    folder.mkdir(parents=True)
    tokenizer.save(folder)
    shortened = 0
    for split in SPLITS:
        encoded = [tokenizer.encode(caption) for captions in texts[split] for caption in captions]
        shortened += sum(len(words) > length for words in encoded)
        np.save(folder / f"{split}.npy", padded(encoded, length, tokenizer.num_words).astype(np.int32))
    source = source_of(texts)
    description: dict[str, object] = {
        "schema": SCHEMA,
        "fingerprint": hashlib.sha256(f"{source} {tokenizer.fingerprint} {length}".encode()).hexdigest(),
        "source": source,
        "rule": rule,
        "num_words": tokenizer.num_words,
        "length": length,
        "shortened": shortened,
        **{split: texts[split] for split in SPLITS},
    }
    (folder / FILE).write_text(json.dumps(description, ensure_ascii=False), encoding="utf-8")


def source_of(texts: Mapping[Split, list[list[str]]]) -> str:
    """Hash of the captions and of the clips they belong to."""
    return hashlib.sha256(json.dumps([texts[split] for split in SPLITS]).encode()).hexdigest()


def padded(encoded: Sequence[Sequence[int]], length: int, null: int) -> np.ndarray:
    """int64 [texts, length]: tokens aligned right. A text without tokens gets the null token."""
    words = np.full((len(encoded), length), PADDING, dtype=np.int64)
    for row, text in enumerate(encoded):
        kept = list(text[:length]) or [null]
        words[row, length - len(kept) :] = kept
    return words
