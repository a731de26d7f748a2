"""Arguments that several commands share, and their meaning: space files by name, study folders, overrides. No heavy
imports.
"""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reco_tune.bundled import bundled
from reco_tune.cli.completion import complete_override, complete_space
from reco_tune.errors import SettingsError, StudyError, command
from reco_tune.files import refuse_address

if TYPE_CHECKING:
    from reco_tune.settings import Experiment, Space

SettingsFile = Annotated[
    str,
    typer.Argument(
        metavar="SPACE|EXPERIMENT",
        help="A space file (a study) or an experiment file (one run), or the name of a shipped one.",
        autocompletion=complete_space,
    ),
]
OneRun = Annotated[
    str,
    typer.Argument(
        metavar="EXPERIMENT|SPACE:ARM",
        help="An experiment file (one run), or one arm of a space file (a study); or the name of a shipped one.",
        autocompletion=complete_space,
    ),
]
Planned = Annotated[
    str,
    typer.Argument(
        metavar="SPACE|EXPERIMENT|SPACE:ARM",
        help="A space file (a study), an experiment file (one run), or an arm of a space; or a shipped one's name.",
        autocompletion=complete_space,
    ),
]
StudyDir = Annotated[Path, typer.Argument(metavar="STUDY_DIR", help="Folder of a study.")]
CheckpointDir = Annotated[
    Path, typer.Argument(metavar="CHECKPOINT", help="Folder of a trained run, for example STUDY_DIR/trials/full-s0.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Overrides one setting, given by its dotted key. Repeatable.",
        autocompletion=complete_override,
    ),
]
TrackingUri = Annotated[
    str | None, typer.Option(help="MLflow server or sqlite:///FILE. Default: a sqlite file in the study folder.")
]
Address = Annotated[
    str | None, typer.Option(help="Ray cluster to run on, for example `auto`. Default: a new one on this machine.")
]
Name = Annotated[str | None, typer.Option(help="Name of the study. Default: the name of the space file.")]
Output = Annotated[Path | None, typer.Option(help="Folder of the study. Default: studies/NAME.")]
Trials = Annotated[int | None, typer.Option(min=0, help="Number of configurations that the search samples.")]
Seeds = Annotated[str | None, typer.Option(help="Training seeds of the fixed arms, for example 0,1,2.")]
Arms = Annotated[
    str | None, typer.Option(metavar="NAMES", help="Runs only these arms of the space, for example full,reco.")
]


def settings_path(given: str) -> Path:
    """The file of a space or an experiment, from a path or the name of a shipped one.

    Raises:
        SettingsError: if it is neither.
    """
    if Path(given).is_file():
        return Path(given)
    name, shipped = given.removesuffix(".yaml"), {**shipped_spaces(), **shipped_experiments()}
    if name in shipped:  # also if a folder has that name, such as the demo's
        return shipped[name]
    if Path(given).is_dir():
        raise SettingsError(f"{given} is a folder, not a space or experiment file; give the YAML file in it")
    close = difflib.get_close_matches(Path(name).name, shipped, n=1)
    hint = f"did you mean the shipped `{close[0]}`?" if close else f"shipped ones are {', '.join(shipped)}"
    raise SettingsError(f"{given} is neither a file nor a shipped space or experiment; {hint}")


def path_and_arm(given: str) -> tuple[Path, str | None]:
    """`space.yaml:reco` -> (space.yaml, reco); None if no arm is given.

    Raises:
        SettingsError: if there is no such file.
    """
    name, colon, arm = given.rpartition(":")
    if colon and not Path(given).is_file():
        return settings_path(name), arm
    return settings_path(given), None


def shipped_spaces() -> dict[str, Path]:
    """The shipped files by name, in alphabetical order."""
    return {path.stem: path for path in sorted(bundled("search_spaces").glob("*.yaml"))}


def shipped_experiments() -> dict[str, Path]:
    """The shipped files by name, in alphabetical order."""
    return {path.stem: path for path in sorted((bundled("search_spaces") / "experiments").glob("*.yaml"))}


def _study_name(given: str | None, space: Path) -> str:
    """The name of a study: MLflow's experiment and the folder's name."""
    name = given or space.stem
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise SettingsError(
            f"--name {name!r} must be letters, digits, dots, dashes and underscores, because its folder has that name;"
            " change it"
        )
    return name


def new_study(name: str | None, output: Path | None, space: Path, planned: bool = False) -> tuple[str, Path]:
    """Name and folder of a new study, from `--name` and `--output` or else from the name of its space.

    Args:
        planned: whether the folder may exist if neither is given, because `plan` may be called for a study that has
            begun.

    Raises:
        SettingsError: for an invalid name.
        StudyError: if the folder is not empty or cannot be made.
    """
    called = _study_name(name, space)
    folder = output or Path("studies") / called
    if not planned or name is not None or output is not None:
        _refuse_used_folder(folder, "give another --name" if output is None else "give another --output")
    return called, folder


def _refuse_used_folder(folder: Path, way_out: str) -> None:
    """Refuses a folder that cannot become a new study's.

    Raises:
        StudyError: if the folder is not empty or cannot be made.
    """
    _refuse_address(folder)
    if (folder / "events.jsonl").exists():
        raise StudyError(
            f"{folder} already holds a study; continue it with `{command('resume', folder)}`, or {way_out}"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StudyError(f"{folder} exists and is not an empty folder; {way_out}")
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise StudyError(f"{folder} cannot be made, because {above} is not a writable folder; {way_out}")


def study_folder(path: Path) -> Path:
    """
    The folder of a study.

    Raises:
        StudyError: if the folder has no study.
    """
    _refuse_address(path)
    if not (path / "events.jsonl").is_file():
        raise StudyError(
            f"{path} is not a study folder: it has no events.jsonl; give the folder that `reco-tune run` printed"
        )
    return path


def _refuse_address(folder: Path) -> None:
    try:
        refuse_address(folder)
    except ValueError as error:
        raise StudyError(str(error)) from error


def parse_seeds(given: str) -> list[int]:
    """ "0,1,2" -> [0, 1, 2]."""
    try:
        return [int(part) for part in given.split(",")]
    except ValueError as error:
        raise SettingsError(
            f"--seeds {given!r} must be whole numbers separated by commas, for example 0,1,2"
        ) from error


def asked_space(
    path: Path, overrides: list[str] | None, trials: int | None, seeds: str | None, arms: str | None
) -> Space:
    """The space in a file with the overrides of the command line.

    Raises:
        SettingsError: for invalid settings.
    """
    from reco_tune.settings import load_space, pinned

    changes = list(overrides or [])
    changes += [f"trials={trials}"] if trials is not None else []
    changes += [f"seeds={parse_seeds(seeds)}"] if seeds is not None else []
    space = pinned(load_space(path, changes))
    return space if arms is None else only_arms(space, arms)


def only_arms(space: Space, given: str) -> Space:
    """The space with some of its arms.

    Raises:
        SettingsError: for an unknown arm, or if a budget needs the baseline and it is left out.
    """
    names = [name.strip() for name in given.split(",")]
    unknown = [name for name in names if name not in space.arms]
    if unknown:
        raise SettingsError(
            f"--arms {given}: {unknown[0]} is not an arm of the space, which has {', '.join(space.arms) or 'none'}"
        )
    from reco_tune.settings import Space as Checked

    kept = {name: own for name, own in space.arms.items() if name in names}
    return Checked.model_validate({**{key: getattr(space, key) for key in Checked.model_fields}, "arms": kept})


def one_arm(space: Space, arm: str, path: Path) -> Space:
    """The space of a single run of an arm, for `train SPACE:ARM`.

    Raises:
        SettingsError: if the file is not a space or has no such arm.
    """
    from reco_tune.settings import Space as Checked
    from reco_tune.settings import check_arm, load_arms

    load_arms(path)
    check_arm(space, arm, path)
    kept = {key: getattr(space, key) for key in ("experiment", "resources", "source")}
    return Checked.model_validate(
        {
            **kept,
            "question": f"What is one run of {path.stem}:{arm}?",
            "arms": {arm: space.arms[arm]},
            "seeds": space.seeds[:1],
        }
    )


def override_trained(experiment: Experiment, overrides: list[str] | None) -> Experiment:
    """A trained model's settings with overrides of settings that training did not depend on.

    Raises:
        SettingsError: for any other override.
    """
    from reco_tune.settings import make_experiment, parse_overrides

    parsed: dict[str, Any] = parse_overrides(overrides or [])
    for key in parsed:
        if not key.startswith(("evaluation.", "sampling.", "resources.")) and key not in (
            "data.root",
            "data.cache_dir",
        ):
            allowed = "data.root, data.cache_dir, evaluation.*, sampling.* and resources.*"
            raise SettingsError(f"--set {key}: training depended on this setting; only {allowed} may change now")
    return make_experiment(experiment.model_dump(mode="json"), parsed, where="--set")
