"""One self-contained page: everything inlined, readable offline, light and dark, sortable and usable by keyboard."""

from __future__ import annotations

import base64
import math
import re
import struct
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import pandas as pd
from markupsafe import Markup, escape

from reco_tune.reporting import measures, tables
from reco_tune.reporting.analyses import REDUCTION, WEIGHT, lowest_by_weight, window_stride_cells
from reco_tune.reporting.drawing import DPI
from reco_tune.reporting.frontier import SETTINGS
from reco_tune.reporting.paper import SOURCE
from reco_tune.reporting.runs import SEARCH, TITLES, budget_order, configurations, differing, own_runs, reference
from reco_tune.reporting.samples import Samples, column_video
from reco_tune.reporting.scatter import interval_bar, scatter
from reco_tune.reporting.tables import MOST_ROWS
from reco_tune.reporting.top_up import top_up_commands, top_up_words
from reco_tune.reporting.verdicts import Verdict

if TYPE_CHECKING:
    from reco_tune.reporting.report import Report

MOST_SETTINGS = 16
"""Settings that a point tells when it is hovered."""
LEAST_CHANCE = 0.05
"""Configurations that stand on the frontier with at least this probability are listed with it."""
ABOUT_FIGURES = {
    "frontier": (
        "Speed against quality",
        (
            "Arms as means over seeds with 95% intervals, sampled runs in grey. The line joins what nothing else beats"
            " in both, the band holds where that line lies in 95% of draws from the intervals, the ring marks its knee."
        ),
    ),
    "compute": (
        "Training compute to reach a quality",
        (
            "Compute is steps divided by the measured speed-up, in units of the baseline's whole training. Left: FVD at"
            " the end. Right: validation cross-entropy on the way; dashed are the levels that the baseline reached."
        ),
    ),
    "hypervolume": (
        "How the frontier grew",
        (
            "Hypervolume of the non-dominated runs against the device hours of all runs that had ended, pruned and"
            " failed ones included."
        ),
    ),
    "importance": (
        "What decides",
        (
            "PED-ANOVA over the sampled runs: how far the best quarter's values of a setting lie from those of all;"
            " shares add up to 100%."
        ),
    ),
    "window_stride": (
        "Window and stride",
        (
            "Mean FVD and speed-up by window length and stride, in tokens: of sampled runs, which may differ in other"
            " settings; without any, of arms that differ in nothing else."
        ),
    ),
    "lambda": (
        "The continuity weight",
        (
            "FVD and validation cross-entropy against λ, with λ = 0 at the left end; windowed runs without a penalty"
            " on h²."
        ),
    ),
    "learning_curves": ("Learning curves", "Validation cross-entropy (full sequence, teacher-forced) at every rung."),
    "loss_by_frame": (
        "Loss by frame",
        (
            "Cross-entropy by block on training clips and on the model's own samples: the gap in block 0 is the"
            " first-frame effect."
        ),
    ),
    "error_growth": (
        "Error growth",
        "How far h moves, relative to its size, in every block after block 0 was perturbed.",
    ),
    "frame_accuracy": (
        "Class accuracy by frame",
        "Share of generated clips whose single frame a classifier takes for the class that was asked for.",
    ),
    "fvd_by_samples": (
        "FVD by the number of clips",
        (
            "FVD is biased upwards by about a constant over the number of clips: numbers from different numbers of"
            " clips are not comparable."
        ),
    ),
}


def render(report: Report, figures: Mapping[str, Path], samples: Mapping[str, Mapping[str, Samples]]) -> str:
    """The page as HTML.

    Args:
        figures: PNG file of each figure by name.
        samples: budget -> arm -> clips.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "code": _code,
        "num": tables.number,
        "span": _span,
        "signed": tables.signed,
        "p": tables.p_value,
        "hours": tables.hours,
        "big": _big,
        "breakable": _breakable,
        "parts": tables.measure_parts,
        "setting": _setting,
        "weight_span": tables.weight_span,
    }
    budgets, settings = budget_order(report.runs), _Settings(report)
    return environment.get_template("page.html.j2").render(
        study=report.study,
        claims=_claims(report.verdicts),
        top_up=top_up_words(report.top_up),
        top_up_commands=top_up_commands(report.top_up, report.runs, "STUDY_DIR"),
        budgets={budget: (TITLES[budget], tables.BUDGET_NOTES[budget]) for budget in budgets},
        ablations={budget: _ablation_rows(report.ablation, budget) for budget in budgets if len(report.ablation)},
        caption=report.caption,
        left_out=report.left_out,
        beside=measures.blocks(report.measures, measures.BESIDE_FVD),
        analyses=measures.blocks(report.measures, measures.ANALYSES),
        measure_notes=(measures.NOTE, measures.LAW_NOTE),
        titles={name: title for name, (title, _) in ABOUT_FIGURES.items()},
        figures={name: _figure(name, path, report) for name, path in figures.items()},
        scatters={
            budget: scatter(report.frontier.at(budget), settings.hover(report.uncertainty.at(budget)))
            for budget in budgets
        },
        fronts={budget: _front(report.uncertainty.at(budget), settings) for budget in budgets},
        levels=_levels(report.quality),
        weights=report.weight_groups.head(MOST_ROWS).to_dict("records"),
        windows=report.windows.head(MOST_ROWS).to_dict("records"),
        weights_caption=report.weights_caption,
        windows_caption=report.windows_caption,
        paper=report.paper,
        paper_source=SOURCE,
        hypervolume=report.frontier.hypervolume,
        settings=SETTINGS,
        sample_rows=_sample_rows(samples),
        ledger=report.ledger.to_dict("records"),
        counts=_counts(own_runs(report.runs)),
        facts=_facts(report),
        protocols={protocol: _standing(protocol) for protocol in dict.fromkeys(report.ablation["protocol"])},
    )


def _standing(protocol: str) -> str:
    """What numbers of a protocol may be compared with."""
    name = protocol.split("/")[0]
    if name in ("native-random", "native-pca"):
        features = "a network at random weights" if name == "native-random" else "principal components of pixels"
        return (
            f"Illustrative: its features are {features}, which rank the arms of this study and compare with nothing"
            " published."
        )
    if name == "native":
        return (
            "Its features were trained on this data set, so it ranks the arms of this study and compares with nothing"
            " published."
        )
    return ""


def _claims(verdicts: Sequence[Verdict]) -> dict[str, list[Verdict]]:
    claims: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        claims.setdefault(verdict.claim, []).append(verdict)
    return claims


def _ablation_rows(table: pd.DataFrame, budget: str) -> list[dict[str, Any]]:
    rows = table[table["budget"] == budget]
    best = tables.best_row(rows)
    low, high = (
        float(value)
        for value in (rows["fvd_low"].fillna(rows["fvd"]).min(), rows["fvd_high"].fillna(rows["fvd"]).max())
    )
    found = []
    for position, row in enumerate(rows.to_dict("records")):
        bar = interval_bar(row["fvd"], row["fvd_low"], row["fvd_high"], low, high)
        shown: dict[str, Any] = {str(name): value for name, value in row.items()}
        found.append(shown | {"best": position == best, "baseline": row["arm"] == reference(budget), "bar": bar})
    return found


def _figure(name: str, path: Path, report: Report) -> dict[str, str]:
    title, about = ABOUT_FIGURES[name]
    width, height = struct.unpack(">II", path.read_bytes()[16:24])  # PNG keeps its size there
    return {
        "title": title,
        "about": about,
        "source": _data_uri(path, "image/png"),
        "alt": f"{title}. {about} {_in_words(name, report)}",
        "width": str(round(width * 100 / DPI)),
        "height": str(round(height * 100 / DPI)),
    }


def _in_words(name: str, report: Report) -> str:
    """The main numbers of a figure for those who cannot see it."""
    if name == "frontier":
        rows = report.ablation.to_dict("records")
        return (
            "; ".join(
                f"{r['arm']} at {r['budget']}: {tables.number(r['speedup'])}x, FVD {tables.number(r['fvd'])}"
                for r in rows
            )
            + "."
        )
    if name == "lambda":
        return " ".join(f"At {words}." for words in lowest_by_weight(report.weight_groups))
    if name == "window_stride":
        budget = budget_order(own_runs(report.runs))[0]  # the one that is drawn
        best = min(
            window_stride_cells(report.windows[report.windows["budget"] == budget]).to_dict("records"),
            key=lambda row: row["fvd"],
        )
        place = f"a window of {best['window.length_tokens']} and a stride of {best['window.stride_tokens']} tokens"
        return f"At {TITLES[budget].lower()} the lowest mean FVD is {tables.number(best['fvd'])}, at {place}."
    if name == "importance":
        first = report.importance.drop_duplicates("objective")  # the most important setting of each stands first
        told = zip(first["objective"], first["setting"], first["importance"], strict=True)
        return " ".join(f"{setting} decides {objective} most ({share:.0%})." for objective, setting, share in told)
    return "The numbers are in runs.csv and in the tables of this page."


def _sample_rows(samples: Mapping[str, Mapping[str, Samples]]) -> list[dict[str, Any]]:
    """Columns of clips by budget: real ones first, then the arms, each a small video of the same labels."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for budget, arms in samples.items():
            columns = []
            real = next((clips.real for clips in arms.values() if clips.real is not None), None)
            clips = ([("real clips", real)] if real is not None else []) + [
                (arm, own.video) for arm, own in arms.items()
            ]
            for number, (name, video) in enumerate(clips):
                path = Path(folder) / f"{budget}-{number}.mp4"
                column_video(video, path)
                columns.append({"name": name, "source": _data_uri(path, "video/mp4")})
            rows.append({"title": TITLES[budget], "columns": columns})
    return rows


class _Settings:
    """What tells runs apart, in words, of the few whose words are wanted."""

    def __init__(self, report: Report) -> None:
        runs = report.runs
        self._row = {trial: row for row, trial in enumerate(runs["trial"])}
        self._configurations = configurations(runs)
        keys = [
            key for key in dict.fromkeys([*SETTINGS, *differing(runs)]) if key in runs and key != REDUCTION
        ]  # λ tells its reduction
        self._columns = {key: runs[key].to_numpy() for key in keys}
        self._reductions = runs[REDUCTION].to_numpy() if REDUCTION in runs else None

    def hover(self, points: pd.DataFrame) -> Callable[[str], str]:
        """Of a trial: its settings, and how probably its configuration stands on the frontier that these
        points are of."""
        chances = dict(zip(configurations(points), points["probability"], strict=True))

        def words(trial: str) -> str:
            row = self._row[trial]
            values = {
                key: self.weight(trial) if key == WEIGHT else column[row] for key, column in self._columns.items()
            }
            told = [f"{key} = {value}" for key, value in values.items() if not pd.isna(value)]
            more = [f"and {len(told) - MOST_SETTINGS} more, in runs.csv"] if len(told) > MOST_SETTINGS else []
            chance = chances.get(self._configurations[row])
            return "\n".join(
                told[:MOST_SETTINGS]
                + more
                + ([] if chance is None else [f"on the frontier with probability {chance:.2f}"])
            )

        return words

    def weight(self, trial: str) -> str | None:
        """λ with its reduction: without it the number says nothing."""
        row = self._row[trial]
        if self._reductions is None or pd.isna(weight := self._columns[WEIGHT][row]):
            return None
        return f"{_setting(weight)} ({self._reductions[row] or 'reduction unknown'})"


def _front(points: pd.DataFrame, settings: _Settings) -> list[dict[Any, Any]]:
    """Configurations that stand on the frontier, or may well do, from slow to fast."""
    shown = points[points["on_frontier"].astype(bool) | (points["probability"] >= LEAST_CHANCE)]
    shown = shown.sort_values(["speedup", "fvd", "trial"], kind="stable").head(MOST_ROWS)
    return shown.assign(**{WEIGHT: shown["trial"].map(settings.weight)}).to_dict("records")


def _levels(quality: pd.DataFrame) -> list[dict[str, Any]]:
    """A row an arm and budget: how much cheaper it reached each of the baseline's levels, empty where it never did."""
    rows = []
    for (budget, arm), own in quality.groupby(["budget", "arm"], sort=False):
        ratios = dict(zip(own["val_cross_entropy"], own["compute_ratio"], strict=True))
        rows.append({"budget": budget, "arm": arm, "ratios": ratios})
    return rows


def _counts(runs: pd.DataFrame) -> list[str]:
    states = runs["state"].value_counts()
    again = len(runs.attrs.get("repeats", {}))
    fixed, sampled = int((runs["arm"] != SEARCH).sum()), int((runs["arm"] == SEARCH).sum()) - again
    words = [f"{fixed} runs of fixed arms", f"{sampled} sampled runs"] if sampled else [f"{fixed} runs"]
    words += [f"{again} runs of finalists with further seeds"] if again else []
    return words + [
        f"{states[state]} {state}" for state in ("pruned", "failed", "running", "planned") if state in states
    ]


def _facts(report: Report) -> list[tuple[str, str]]:
    runs, origin = own_runs(report.runs), report.study.provenance
    found = [
        (name.replace("_", " "), ", ".join(dict.fromkeys(str(value) for value in runs[name] if value)))
        for name in ("protocol", "extractor", "data_fingerprint", "tokenizer_fingerprint")
    ]
    found.append(("seeds", ", ".join(str(seed) for seed in sorted({int(seed) for seed in runs["seed"]}))))
    for key, value in origin.items():
        text = (
            ", ".join(f"{name} {version}" for name, version in value.items()) if isinstance(value, dict) else str(value)
        )
        found.append((key.replace("_", " "), text))
    return [(name, text) for name, text in found if text]


def _code(text: str) -> Markup:
    """Escaped text with `names` set as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _setting(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _span(row: Mapping[str, Any], name: str) -> str:
    """From one end of a value's interval to the other; nothing where there is none."""
    low, high = tables.number(row[f"{name}_low"]), tables.number(row[f"{name}_high"])
    return f"{low}–{high}" if low and high else ""


def _breakable(name: str) -> Markup:
    """A name that may break after its underscores."""
    return Markup(str(escape(name)).replace("_", "_<wbr>"))


def _big(value: float) -> str:
    """1.3e12 as 1.3 T; whole numbers below a thousand."""
    if value is None or not math.isfinite(value) or value == 0:
        return ""
    for unit, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def _data_uri(path: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
