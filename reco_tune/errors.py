"""Errors that a person can cause or must hear of: one sentence that names the thing and the way out."""


class ReCoTuneError(Exception):
    """Base of every error that ends in one clear sentence."""

    exit_code = 2


class SettingsError(ReCoTuneError):
    """A setting, a search space or an override that cannot be."""


class DataError(ReCoTuneError):
    """A data folder, a video or a token cache that cannot be used."""


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
