"""Studies from Python: what `import reco_tune as rt` offers. A front of what the command line also calls; computes
nothing itself, and loads torch, Ray and pandas only where they are used.

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
    """The space of a YAML file, or a shipped one by its name: `rt.load("joint")`. An experiment file is the space of
    its one run.

    Raises:
        SettingsError: where there is no such file, or for what cannot be in it.
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
    """Runs a study in a folder; goes on with it where the folder holds the same study already.

    Args:
        space: what `load` gave, or what it takes.
        name: of the study; the folder's where it is empty.
        address: of a Ray cluster; without it the study starts its own on this machine.
        tracking_uri: MLflow server; a file in the folder where it is left out.
        progress: whether it is shown, in a notebook as a bar, elsewhere as lines on stderr.

    Raises:
        SettingsError, DataError, StudyError: for what cannot be run, before anything is written.
        RunFailedError: where runs are left over. Runs that failed by themselves stand in `study.runs()`.
        StoppedError: after Ctrl-C, or an interrupted cell; the same call goes on.
    """
    from reco_tune import study

    given = space if isinstance(space, EditableSpace) else load(space)
    place = Path(folder)
    options = study.Options(name=name, address=address, tracking_uri=tracking_uri, command="reco_tune.run(...)")
    drive(place, given.checked.trials, progress, lambda told: study.run(given.checked, place, options, told))
    return Study(place)


def open(folder: str | Path) -> Study:
    """A study that was run, or runs, in a folder.

    Raises:
        StudyError: where the folder holds none.
    """
    return Study(Path(folder))


def _path(source: str | Path) -> Path:
    """
    Raises:
        SettingsError: where it is neither a file nor the name of a shipped one.
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
