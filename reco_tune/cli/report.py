"""`reco-tune report`: writes the tables, figures and page of a study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reco_tune.cli.options import study_folder


def report(
    source: Annotated[
        str, typer.Argument(metavar="STUDY_DIR|mlflow:EXPERIMENT", help="Folder of a study, or its MLflow experiment.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(help="Folder of the report. Default: report/ in the study folder; report-EXPERIMENT for MLflow."),
    ] = None,
    tracking_uri: Annotated[
        str | None, typer.Option(help="MLflow server of mlflow:EXPERIMENT. Default: MLFLOW_TRACKING_URI.")
    ] = None,
    imports: Annotated[
        list[Path] | None,
        typer.Option(
            "--import",
            metavar="FILE.csv",
            help="Adds results from elsewhere as marked rows. Columns: arm, fvd, protocol, and any of runs.csv.",
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(help="Another protocol from `rescore`, or any part of its name that no other protocol has."),
    ] = None,
) -> None:
    """Writes the report of a study and prints its tables. While a study is still running, the report has the finished
    runs.

    \b
    Examples:
      reco-tune report studies/evidence
      reco-tune report studies/evidence --import published.csv
      reco-tune report mlflow:evidence --tracking-uri http://mlflow:5000 --output report
    """
    from reco_tune.cli.study import conclude

    if source.startswith("mlflow:"):
        import os

        if tracking_uri is not None:
            os.environ["MLFLOW_TRACKING_URI"] = tracking_uri
        conclude(
            source, output or Path(f"report-{source.removeprefix('mlflow:')}"), imports=imports or [], protocol=protocol
        )
    else:
        conclude(study_folder(Path(source)), output, tracking_uri, imports or [], protocol)
