"""Text tokenizers: a word list fitted to captions, or a tokenizer of transformers. Knows nothing of clips.

Both number their words from 0. In a word list, 0 is the unknown word. Neither adds tokens for the beginning or the
end.
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
"""Value of `model.text_tokenizer` for a word list fitted to the captions."""
NEEDED_BY = "a model.text_tokenizer of transformers"
"""Names the setting that needs the packages, for error messages."""
UNKNOWN = "<unknown>"
_PIECE = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")


class TextTokenizer(Protocol):
    """Splits a text into numbered words."""

    @property
    def num_words(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    def encode(self, text: str) -> list[int]:
        """Numbers of its words; empty for an empty text."""

    def unknown(self, text: str) -> list[str]:
        """Words of a text that the tokenizer does not know; to a model they all look the same."""

    def save(self, folder: Path) -> None: ...


class WordList:
    """The words of the captions, most frequent first; case is ignored."""

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
    """A fast tokenizer of transformers, stored in one file."""

    FILE = "tokenizer.json"

    def __init__(self, description: str) -> None:
        """
        Raises:
            SettingsError: if the package tokenizers is missing.
        """
        self._description = description
        self._tokenizer: Any = package_of_extra("tokenizers", "hf", NEEDED_BY).Tokenizer.from_str(description)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    @classmethod
    def open(cls, name: str) -> HubTokenizer:
        """
        Args:
            name: of a folder or a repository on the hub.

        Raises:
            SettingsError: if transformers is missing, or there is no fast tokenizer of that name.
        """
        transformers = package_of_extra("transformers", "hf", NEEDED_BY)
        try:
            found = transformers.AutoTokenizer.from_pretrained(name)
            return cls(found.backend_tokenizer.to_str())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            said = " ".join(str(error).split())[:200]
            raise SettingsError(
                f"model.text_tokenizer ({name}) is not a fast tokenizer that transformers can open ({said}); give a"
                " folder, a hub name, or words"
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
        DataError: if the folder holds no tokenizer, or it is damaged.
        SettingsError: if its package is missing.
    """
    try:
        if (folder / WordList.FILE).exists():
            words = json.loads((folder / WordList.FILE).read_text(encoding="utf-8"))
            return WordList([str(word) for word in words])
        return HubTokenizer((folder / HubTokenizer.FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"the word list in {folder} is missing or damaged; delete the folder {folder.name} and run again"
        ) from error


def _cut(text: str) -> list[str]:
    return _PIECE.findall(text.lower())
