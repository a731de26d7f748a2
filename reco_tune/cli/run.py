"""`reco-tune run`: runs a study."""

from __future__ import annotations

from reco_tune.cli.options import (
    Address,
    Arms,
    Name,
    Output,
    Overrides,
    Seeds,
    SettingsFile,
    TrackingUri,
    Trials,
    asked_space,
    new_study,
    settings_path,
)


def run(
    space: SettingsFile,
    overrides: Overrides = None,
    name: Name = None,
    output: Output = None,
    address: Address = None,
    tracking_uri: TrackingUri = None,
    trials: Trials = None,
    seeds: Seeds = None,
    arms: Arms = None,
) -> None:
    """Runs a study: every arm under every budget and seed, then the configurations that the search proposes. Ends with
    the report.

    \b
    Examples:
      reco-tune run evidence
      reco-tune run my_space.yaml --name wide --set data.root=/data/ucf101 --set window.length_blocks=3
      reco-tune run paper_ablation --address auto --tracking-uri http://mlflow:5000 --seeds 0,1,2
    """
    path = settings_path(space)
    loaded = asked_space(path, overrides, trials, seeds, arms)
    called, folder = new_study(name, output, path)

    from reco_tune.cli.study import carry_out, command_line
    from reco_tune.study import Options, run

    options = Options(name=called, address=address, tracking_uri=tracking_uri, command=command_line())
    carry_out(folder, loaded.trials, lambda observer: run(loaded, folder, options, observer), tracking_uri)
