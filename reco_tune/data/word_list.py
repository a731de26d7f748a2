"""Texts as numbers: a list of words fitted to captions, or a tokenizer of transformers. Knows nothing of clips.

Both count their words from 0; what is not known is word 0 of a list. Neither adds marks of a beginning or an end.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from reco_tune.errors import DataError, SettingsError
from reco_tune.pretrained import package_of_extra

WORDS = "words"
"""`model.text_tokenizer` of a list that is fitted here."""
NEEDED_BY = "a model.text_tokenizer of transformers"
"""What needs its packages."""
UNKNOWN = "<unknown>"
_PIECE = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")


class TextTokenizer(Protocol):
    """What cuts a text into words."""

    @property
    def num_words(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    def encode(self, text: str) -> list[int]:
        """Its words, none for an empty text."""

    def unknown(self, text: str) -> list[str]:
        """Words of a text that all look the same to it."""

    def save(self, folder: Path) -> None: ...


class WordList:
    """The words of some captions, the commonest first; case does not matter."""

    FILE = "words.json"

    def __init__(self, words: list[str]) -> None:
        self._words, self._places = words, {word: place for place, word in enumerate(words)}

    @classmethod
    def fit(cls, captions: Iterable[str]) -> WordList:
        counts = Counter(word for caption in captions for word in _cut(caption))
        return cls([UNKNOWN, *sorted(counts, key=lambda word: (-counts[word], word))])

    @property
    def num_words(self) -> int:
        return len(self._words)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256("\n".join(self._words).encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        return [self._places.get(word, 0) for word in _cut(text)]

    def unknown(self, text: str) -> list[str]:
        return [word for word in _cut(text) if word not in self._places]

    def save(self, folder: Path) -> None:
        (folder / self.FILE).write_text(json.dumps(self._words), encoding="utf-8")


class HubTokenizer:
    """A fast tokenizer of transformers, whole in one file."""

    FILE = "tokenizer.json"

    def __init__(self, description: str) -> None:
        """
        Raises:
            SettingsError: where the package tokenizers is missing.
        """
        self._description = description
        self._tokenizer: Any = package_of_extra("tokenizers", "hf", NEEDED_BY).Tokenizer.from_str(description)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    @classmethod
    def open(cls, name: str) -> HubTokenizer:
        """
        Args:
            name: of a folder or a repository of the hub.

        Raises:
            SettingsError: where transformers is missing, or there is no fast tokenizer of that name.
        """
        transformers = package_of_extra("transformers", "hf", NEEDED_BY)
        try:
            found = transformers.AutoTokenizer.from_pretrained(name)
            return cls(found.backend_tokenizer.to_str())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            said = " ".join(str(error).split())[:200]
            raise SettingsError(
                f"model.text_tokenizer ({name}) is no fast tokenizer that transformers can open ({said}); give a"
                " folder or a hub name, or words"
            ) from error

    @property
    def num_words(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self._description.encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        found: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return found

    def unknown(self, text: str) -> list[str]:
        return []

    def save(self, folder: Path) -> None:
        (folder / self.FILE).write_text(self._description, encoding="utf-8")


def load_text_tokenizer(folder: Path) -> TextTokenizer:
    """
    Raises:
        DataError: where the folder holds none, or it is damaged.
        SettingsError: where its package is missing.
    """
    try:
        if (folder / WordList.FILE).exists():
            words = json.loads((folder / WordList.FILE).read_text(encoding="utf-8"))
            return WordList([str(word) for word in words])
        return HubTokenizer((folder / HubTokenizer.FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"the list of words in {folder} is missing or damaged; delete the folder {folder.name} and run again"
        ) from error


def _cut(text: str) -> list[str]:
    return _PIECE.findall(text.lower())
