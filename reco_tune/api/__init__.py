"""Studies from Python: what `import reco_tune as rt` offers. It calls the same functions as the command line, and
loads torch, Ray and pandas only where they are used.

Clips have one axis order everywhere: uint8 [clips, frames, channels, height, width].
"""

from __future__ import annotations

import difflib
from pathlib import Path

from reco_tune.api.space import EditableSpace
from reco_tune.api.study import Clips, Run, Study, drive
from reco_tune.bundled import bundled
from reco_tune.errors import SettingsError

__all__ = ["Clips", "EditableSpace", "Run", "Study", "load", "open", "run"]


def load(source: str | Path) -> EditableSpace:
    """Loads the space of a YAML file, or a shipped one by name: `rt.load("joint")`. An experiment file becomes a space
    of one run.

    Raises:
        SettingsError: if there is no such file, or its settings are invalid.
    """
    from reco_tune.settings import load_space

    return EditableSpace(load_space(_path(source)))


def run(
    space: EditableSpace | str | Path,
    folder: str | Path,
    *,
    name: str = "",
    address: str | None = None,
    tracking_uri: str | None = None,
    progress: bool = True,
) -> Study:
    """Runs a study in a folder, or continues it if the folder holds the same study.

    Args:
        space: a space from `load`, or what `load` takes.
        name: name of the study; by default the folder's name.
        address: address of a Ray cluster; by default the study starts its own on this machine.
        tracking_uri: MLflow server; by default a file in the folder.
        progress: whether to show progress, as a bar in a notebook or as lines on stderr.

    Raises:
        SettingsError, DataError, StudyError: if the study cannot run; raised before anything is written.
        RunFailedError: if runs are unfinished. Runs that failed by themselves are in `study.runs()`.
        StoppedError: after Ctrl-C, or if the cell is interrupted. The same call continues.
    """
    from reco_tune import study

    given = space if isinstance(space, EditableSpace) else load(space)
    place = Path(folder)
    options = study.Options(name=name, address=address, tracking_uri=tracking_uri, command="reco_tune.run(...)")
    drive(place, given.checked.trials, progress, lambda told: study.run(given.checked, place, options, told))
    return Study(place)


def open(folder: str | Path) -> Study:
    """Opens the study in a folder. It may be running.

    Raises:
        StudyError: if the folder has no study.
    """
    return Study(Path(folder))


def _path(source: str | Path) -> Path:
    """The path of a file, or of a shipped one by its name.

    Raises:
        SettingsError: if it is neither a file nor a shipped name.
    """
    shipped = bundled("search_spaces")
    places = [Path(source), shipped / f"{source}.yaml", shipped / "experiments" / f"{source}.yaml"]
    for path in places:
        if path.is_file():
            return path
    names = sorted(path.stem for path in shipped.rglob("*.yaml"))
    close = difflib.get_close_matches(str(source), names, n=1)
    hint = f"did you mean {close[0]}?" if close else f"shipped ones are {', '.join(names)}"
    raise SettingsError(f"{source} is neither a file nor a shipped space or experiment; {hint}")
