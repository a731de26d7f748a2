"""`reco-tune status`: where a study stands, from its log."""

from __future__ import annotations

from reco_tune.cli.options import StudyDir, study_folder


def status(study_dir: StudyDir) -> None:
    """State of every run, cost so far and time left, from the log; works while the study runs and after a crash.

    \b
    Example:
      reco-tune status studies/evidence
    """
    import time

    from reco_tune.cli.console import print_table
    from reco_tune.cli.estimate import HEADER, device_seconds, duration, headline, row, standing
    from reco_tune.cli.study import sampled_trials
    from reco_tune.errors import command
    from reco_tune.study_log import StudyFolder, read_events, replay

    folder = StudyFolder(study_folder(study_dir))
    trials, events = sampled_trials(folder.path), list(read_events(folder.events))
    study, live = replay(events), folder.live
    now = time.time() if live or not events else events[-1]["time"]  # for a study that stopped, time stands still
    runs = study.runs.values()
    print_table(f"{study.name}: {study.question}", HEADER, [row(run, now) for run in runs], left=2)
    print()
    for run in runs:
        if run.reason:
            print(f"{run.trial} {run.state}: {run.reason}")
    state = (
        "finished"
        if study.finished
        else "running"
        if live
        else f"not running, `{command('resume', study_dir)}` goes on with it"
    )
    print(f"{headline(standing(study, trials, now))}; {state}")
    print(
        f"spent so far: {duration(device_seconds(study))} of device time on calibration, training, generation and"
        " evaluation"
    )
