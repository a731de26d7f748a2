"""`reco-tune extend`: more of a study that exists."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from reco_tune.cli.options import Address, StudyDir, TrackingUri, parse_seeds, study_folder


def extend(
    study_dir: StudyDir,
    arms: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|NAMES", help="New arms: a YAML file of arms, or known ones, for example local,reco."
        ),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Further training seeds of the fixed arms, for example 3,4.")
    ] = None,
    trials: Annotated[int, typer.Option(metavar="+N", min=0, help="Further sampled trials.")] = 0,
    budgets: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Further budgets, for example equal_compute,half_compute.")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Ranges (search.KEY), or where it runs (resources.*)."),
    ] = None,
    address: Address = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Adds arms, seeds, trials, budgets or ranges to a study and continues it, even if it was finished. Finished runs
    are never repeated. A running study takes the additions up.

    \b
    Examples:
      reco-tune extend studies/evidence --seeds 3,4
      reco-tune extend studies/evidence --arms norm_penalty,local_first
      reco-tune extend studies/joint --trials +24 --set "search.window.length_blocks={int: [2, 6]}"
    """
    folder = study_folder(study_dir)

    from reco_tune.cli.study import carry_out, command_line, sampled_trials
    from reco_tune.settings import load_space
    from reco_tune.study import Growth, Options, extend, requests
    from reco_tune.study.growth import given_arms, grown
    from reco_tune.study_log import StudyFolder

    target = StudyFolder(folder)
    sampled_trials(folder)  # its settings are there
    space = load_space(target.settings)
    growth = Growth(
        given_arms(arms, space) if arms else {},
        tuple(parse_seeds(seeds)) if seeds else (),
        trials,
        tuple(name.strip() for name in budgets.split(",")) if budgets else (),
        tuple(changes or ()),
    )
    larger = grown(space, growth)  # refused here, where it is typed
    if growth.seeds:
        from reco_tune.reporting.sections.more_seeds import PEEKING

        print(f"note: {PEEKING}", file=sys.stderr)
    event = requests.answered(target, "extend", growth=growth.to_json())
    if event is not None:
        print(f"added to the running study: {', '.join(event['what'])}")
        return
    options = Options(address=address, tracking_uri=tracking_uri, command=command_line())
    carry_out(folder, larger.trials, lambda observer: extend(folder, growth, options, observer), tracking_uri)
