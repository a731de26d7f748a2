"""Shell completion of settings, overrides and shipped spaces. Must answer at once."""

from __future__ import annotations

from reco_tune.bundled import bundled


def complete_key(incomplete: str) -> list[str]:
    """Settings and sections that begin with the given text."""
    from reco_tune.settings.described import experiment_groups, space_groups

    keys = [one.key for group in (*experiment_groups(), *space_groups()) for one in group.settings]
    return sorted({key for key in (*keys, *(key.split(".")[0] for key in keys)) if key.startswith(incomplete)})


def complete_override(incomplete: str) -> list[str]:
    """`KEY=` for a shell."""
    return [f"{key}=" for key in complete_key(incomplete) if "." in key]


def complete_space(incomplete: str) -> list[str]:
    """Shipped spaces and experiments for a shell. The shell adds files itself if no name matches."""
    folder = bundled("search_spaces")
    names = sorted(path.stem for where in (folder, folder / "experiments") for path in where.glob("*.yaml"))
    return [name for name in names if name.startswith(incomplete)]
