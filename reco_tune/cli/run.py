"""`reco-tune run`: a study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reco_tune.cli.options import (
    Address,
    Overrides,
    SpaceFile,
    TrackingUri,
    only_arms,
    parse_seeds,
    refuse_used_folder,
    space_path,
    study_name,
)


def run(
    space: SpaceFile,
    overrides: Overrides = None,
    name: Annotated[str | None, typer.Option(help="Name of the study; by default that of the space file.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the study; by default studies/NAME.")] = None,
    address: Address = None,
    tracking_uri: TrackingUri = None,
    trials: Annotated[int | None, typer.Option(min=0, help="Sampled trials.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Training seeds of the fixed arms, for example 0,1,2.")] = None,
    arms: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Only these of the space's arms, for example full,reco.")
    ] = None,
) -> None:
    """Runs a study: every arm under every budget and seed, then what the search proposes; ends with the report.

    \b
    Examples:
      reco-tune run evidence
      reco-tune run my_space.yaml --name wide --set data.root=/data/ucf101 --set window.length_blocks=3
      reco-tune run paper_ablation --address auto --tracking-uri http://mlflow:5000 --seeds 0,1,2
    """
    from reco_tune.settings import load_space

    path = space_path(space)
    changes = list(overrides or [])
    changes += [f"trials={trials}"] if trials is not None else []
    changes += [f"seeds={parse_seeds(seeds)}"] if seeds is not None else []
    loaded = load_space(path, changes)
    loaded = only_arms(loaded, arms) if arms is not None else loaded
    called = study_name(name, path)
    folder = output or Path("studies") / called
    refuse_used_folder(folder, "give another --name" if output is None else "give another --output")

    from reco_tune.cli.study import carry_out, command_line
    from reco_tune.study import Options, run

    options = Options(name=called, address=address, tracking_uri=tracking_uri, command=command_line())
    carry_out(folder, loaded.trials, lambda observer: run(loaded, folder, options, observer), tracking_uri)
