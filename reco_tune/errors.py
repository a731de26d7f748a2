"""Errors for the user: one sentence that names the thing and the way out."""

import errno
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""A full disk, an exceeded quota, a file above the size limit."""


class ReCoTuneError(Exception):
    """Base of every error that ends in one clear sentence."""

    exit_code = 2


class SettingsError(ReCoTuneError):
    """An invalid setting, search space or override."""


class DataError(ReCoTuneError):
    """A data folder, a video or a token cache that cannot be used."""


class TooFewClipsError(DataError):
    """Too few of the videos could be used."""

    exit_code = 1

    def __init__(self, message: str, skipped: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.skipped = skipped
        """Videos that could not be used."""


class CheckpointError(ReCoTuneError):
    """A checkpoint that is missing, damaged or from another program."""


class StudyError(ReCoTuneError):
    """A study folder that cannot be created, resumed or read."""


class ComparisonError(ReCoTuneError):
    """Numbers that must not stand in one table."""


class TrackingError(ReCoTuneError):
    """A tracking server that cannot be reached or has another study."""


class RunFailedError(ReCoTuneError):
    """A run with valid settings that failed."""

    exit_code = 1


class StoppedError(ReCoTuneError):
    """The user stopped the work."""

    exit_code = 130


def command(verb: str, *words: str | Path) -> str:
    """A command of this program for a message, quoted for the shell."""
    return shlex.join(["reco-tune", verb, *map(str, words)])


def no_space(error: BaseException) -> bool:
    """Whether an error means that the disk is full. Some libraries say so only in the message."""
    seen: BaseException | None = error
    while seen is not None:
        if (isinstance(seen, OSError) and seen.errno in NO_SPACE) or any(
            f"os error {code})" in str(seen) for code in NO_SPACE
        ):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
