"""Starts or continues a study: checks everything before anything is written, and locks the folder meanwhile. Knows
plans, the folder and the driver.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reco_tune.cost.planning import Plan, plan
from reco_tune.errors import SettingsError, StudyError, command
from reco_tune.settings import Space, load_space, pinned
from reco_tune.study import preflight
from reco_tune.study.cluster import machine, place, socket_folder
from reco_tune.study.growth import LIMITS, Growth, check_extendable, grown, growth_since, parse_changes
from reco_tune.study.limits import check_affordable, limit_reached
from reco_tune.study.observer import Observer
from reco_tune.study.runner import Driver, Options, StudyResult
from reco_tune.study.searcher import rehearse
from reco_tune.study.study_writer import claimed, freeze, frozen, locked
from reco_tune.study.unchanged import check_unchanged
from reco_tune.study_log import StudyFolder, read_events, read_study
from reco_tune.tracking import check_name


def run(space: Space, folder: Path, options: Options = Options(), observer: Observer = Observer()) -> StudyResult:
    """Runs a study in a folder, or continues it if the folder holds the same study.

    Raises:
        StudyError: if the folder holds another study, or a running one.
        SettingsError, DataError: for a study that cannot run.
        RunFailedError: if the cluster lost so much that runs stay unfinished.
    """
    space = pinned(frozen(space))
    target = StudyFolder(Path(folder))
    planned = plan(space)
    if options.address is None:
        check_room(planned)
    check(planned, folder, options)
    with claimed(space, target):
        return _driver(planned, target, options, observer).drive()


def resume(
    folder: Path, options: Options = Options(), observer: Observer = Observer(), changes: Sequence[str] = ()
) -> StudyResult:
    """Continues the study in a folder, after any crash. Finished runs are not repeated.

    Args:
        changes: `key=value` of settings of where it runs (`WHERE`) or when it stops; they stay in effect.

    Raises:
        StudyError: if the folder holds no study, or a running one, or a setting changed that its runs depend on.
    """
    target = _began(folder)
    parse_changes(changes, "resume", also=LIMITS)
    with locked(target):
        return _go_on(load_space(target.settings, changes), target, options, observer)


def extend(folder: Path, growth: Growth, options: Options = Options(), observer: Observer = Observer()) -> StudyResult:
    """Extends a study that is not running, finished or not, and continues it. Finished runs are not repeated.
    `requests.ask` extends a running study.

    Raises:
        StudyError: if the folder holds no study, or a running one, or an addition is not allowed.
    """
    target = _began(folder)
    with locked(target):
        space = load_space(target.settings)
        check_extendable(read_study(target.path), target.path)
        return _go_on(grown(space, growth), target, options, observer)


def _at_once(planned: Plan) -> int:
    """Number of runs at the same time on this machine. Returns 1 if none fits, because another check reports that."""
    try:
        return place(planned.shared.resources, [machine()], jobs=max(1, len(planned.runs))).groups
    except SettingsError:
        return 1


def _began(folder: Path) -> StudyFolder:
    """The folder of a study that was begun.

    Raises:
        StudyError: if there is no study in it.
    """
    target = StudyFolder(Path(folder))
    if not target.settings.exists():
        raise StudyError(
            f"{folder} is not a study folder: it has no {target.settings.name}; give the folder that `reco-tune run`"
            " printed"
        )
    return target


def _go_on(space: Space, folder: StudyFolder, options: Options, observer: Observer) -> StudyResult:
    """Runs the study in a locked folder, from now on under these settings."""
    planned = plan(space)
    driver = _driver(planned, folder, options, observer)
    if not driver.study.finished or growth_since(driver.study, space):
        if limit := limit_reached(space, driver.study):
            raised = command("resume", folder.path, "--set", f"{limit.split()[0]}=MORE")
            raise StudyError(f"{limit}; `{raised}` continues the study under a higher limit")
        if options.address is None:
            check_room(planned)
        check(planned, folder.path, options)
    if space != load_space(folder.settings):
        freeze(space, folder)
    return driver.drive()


def check(planned: Plan, folder: Path, options: Options) -> None:
    """Refuses a study that can never run, before anything is written. `check_room` checks whether it fits this machine.

    Raises:
        ReCoTuneError: one sentence.
    """
    target = StudyFolder(Path(folder))
    if planned.trials:
        rehearse(planned.space)
    if options.address is None:
        socket_folder()
    preflight.check_address(options.address)
    preflight.check_storage(planned.shared.resources.storage)
    preflight.check_files(planned.shared, planned.space)
    if not target.events.exists():
        for earlier in planned.space.warm_start:
            read_study(earlier)
        check_affordable(planned, options.address is None, _at_once(planned))
    if options.track and options.tracking_uri is not None:
        check_name(options.tracking_uri, _name(target, options), target)


def check_room(planned: Plan) -> None:
    """
    Checks a study against this machine.

    Raises:
        SettingsError: if a run's workers or their memory do not fit.
    """
    placed = place(planned.shared.resources, [machine()], planned.total)
    preflight.check_memory(planned, [preflight.look({})], placed.groups * placed.workers)


def _name(folder: StudyFolder, options: Options) -> str:
    """Under which a study is opened, or was."""
    opened = next(read_events(folder.events), {}).get("name", "") if folder.events.is_file() else ""
    return opened or options.name or folder.path.resolve().name


def _driver(plan: Plan, folder: StudyFolder, options: Options, observer: Observer) -> Driver:
    """The driver of a study.

    Raises:
        StudyError: if a setting has changed that the study's runs depend on.
    """
    if folder.events.exists():
        check_unchanged(plan.space, read_study(folder.path), folder)
    return Driver(plan, folder, options, observer)
