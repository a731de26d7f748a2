"""Errors that a person can cause or must hear of: one sentence that names the thing and the way out."""

import errno
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""A full disk, a used-up quota, a file beyond the allowed size."""


class ReCoTuneError(Exception):
    """Base of every error that ends in one clear sentence."""

    exit_code = 2


class SettingsError(ReCoTuneError):
    """A setting, a search space or an override that cannot be."""


class DataError(ReCoTuneError):
    """A data folder, a video or a token cache that cannot be used."""


class TooFewClipsError(DataError):
    """Videos that were found, but of which too few could be used."""

    exit_code = 1

    def __init__(self, message: str, skipped: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.skipped = skipped
        """Videos that could not be used."""


class CheckpointError(ReCoTuneError):
    """A checkpoint that is missing, foreign or damaged."""


class StudyError(ReCoTuneError):
    """A study folder that cannot be created, resumed or read."""


class ComparisonError(ReCoTuneError):
    """Numbers that must not stand in one table."""


class TrackingError(ReCoTuneError):
    """A tracking server that cannot be reached or holds something else."""


class RunFailedError(ReCoTuneError):
    """A run that was set up rightly and failed all the same."""

    exit_code = 1


class StoppedError(ReCoTuneError):
    """A person stopped the work."""

    exit_code = 130


def command(verb: str, *words: str | Path) -> str:
    """A command of this program as a message prints it: a shell takes it back as it is."""
    return shlex.join(["reco-tune", verb, *map(str, words)])


def no_space(error: BaseException) -> bool:
    """Whether an error says that nothing more can be written; libraries written in other languages say it in words
    alone.
    """
    seen: BaseException | None = error
    while seen is not None:
        if (isinstance(seen, OSError) and seen.errno in NO_SPACE) or any(
            f"os error {code})" in str(seen) for code in NO_SPACE
        ):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
