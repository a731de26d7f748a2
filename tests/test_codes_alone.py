"""Studies on codes that come without a decoder: they are compared by validation cross-entropy, and nothing claims an
FVD.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from toy_study import record_study

from reco_tune.cli.estimate import header, headline, row, standing, summary, summary_header
from reco_tune.cost import plan
from reco_tune.errors import ComparisonError, SettingsError
from reco_tune.reporting import Evidence, ablation_table, load_runs, write_report
from reco_tune.reporting.comparisons import unresolved
from reco_tune.reporting.sections.ablation import caption, left_out
from reco_tune.reporting.sections.answer import answer
from reco_tune.reporting.sections.claims import claims
from reco_tune.settings import load_space
from reco_tune.study_log import read_study

PROTOCOL = "codes/512 held-out clips/last"
PIXELS = ("fvd", "kernel_distance", "motion_distance", "class_accuracy", "last_frame_accuracy", "frame_accuracy")
ARMS = ("full", "fewer_frames_tokens", "local_balanced", "reco", "norm_penalty")


def record_codes(path: Path, protocol: str = PROTOCOL, **options: Any) -> Path:
    """The toy study as a study on codes leaves it: no metric or curve of pixels, and no loss of arms that never see a
    whole clip.
    """
    record_study(path, arms=ARMS, files=False, protocol=protocol, **options)
    log = path / "events.jsonl"
    events = [json.loads(line) for line in log.read_text().splitlines()]
    for event in events:
        for where in ("metrics", "curves"):
            own = event.get(where, {})
            for name in [name for name in own if name.startswith(PIXELS)]:
                del own[name]
        if event.get("trial", "").startswith("fewer_frames"):
            event.get("metrics", {}).pop("val_cross_entropy", None)
        if "data.layout" in event.get("settings", {}):
            event["settings"]["data.layout"] = "tokens"
        event.pop("constraints", None)
    log.write_text("".join(json.dumps(event) + "\n" for event in events))
    return path


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record_codes(tmp_path_factory.mktemp("codes") / "toy", seeds=(0, 1, 2))


def test_the_tables_have_the_columns_there_are(study: Path) -> None:
    runs = load_runs(study)
    table = ablation_table(runs)
    assert " ".join(table.columns) == (
        "budget arm seeds val_cross_entropy val_cross_entropy_low val_cross_entropy_high val_cross_entropy_delta"
        " val_cross_entropy_p_value speedup speedup_low speedup_high speedup_limit limit_fraction peak_memory_ratio"
        " gpu_hours protocol"
    )
    assert set(table["arm"]) == {*ARMS} - {"fewer_frames_tokens"} and set(table["protocol"]) == {PROTOCOL}
    own = runs[(runs["arm"] == "reco") & (runs["budget"] == "equal_steps")]["val_cross_entropy"]
    row = table[(table["budget"] == "equal_steps") & (table["arm"] == "reco")].iloc[0]
    half = own.std() / math.sqrt(3) * 4.302652729696142  # t of two degrees of freedom
    assert row["val_cross_entropy"] == pytest.approx(own.mean())
    assert row["val_cross_entropy_high"] - row["val_cross_entropy"] == pytest.approx(half)
    points = Evidence(runs).frontier.points
    assert not [name for name in map(str, points) if name.startswith("fvd")] and (points["arm"] == "search").any()


def test_the_report_claims_no_fvd_anywhere(study: Path, tmp_path: Path) -> None:
    report = write_report(study, tmp_path / "report")
    for path in report.folder.iterdir():
        if path.suffix not in (".csv", ".md", ".tex", ".html", ".json") or path.name == "runs.csv":
            continue
        text = re.sub(r"data:[a-z/0-9]+;base64,[A-Za-z0-9+/=]+", "", path.read_text())
        found = re.findall(r".{0,40}fvd.{0,40}", text, re.IGNORECASE)
        assert not found, f"{path.name}: {found[:3]}"
    page = report.index.read_text()
    assert PROTOCOL in page and "come without a decoder" in page
    assert {"frontier.png", "compute.png", "lambda.png", "window_stride.png"} <= {
        path.name for path in report.folder.iterdir()
    }
    whole = pd.read_csv(report.folder / "runs.csv")
    assert whole["fvd"].isna().all(), "the one table of every metric has its column, and nothing in it"


def test_verdicts_are_of_the_cross_entropy_and_an_arm_without_one_is_left_out_with_its_reason(study: Path) -> None:
    evidence = Evidence.read(study)
    told = {(one.claim, one.budget): one for one in claims(evidence)}
    recovery = told["Windows with the continuity term recover the baseline", "equal_steps"]
    assert recovery.words.startswith("Validation cross-entropy") and "(1% of the baseline)" in recovery.words
    assert told["Training on fewer frames costs quality", "equal_steps"].verdict == "not tested"
    assert "validation cross-entropy is" in answer(evidence)[0]
    [why] = [why for trial, why in left_out(evidence.runs) if trial == "fewer_frames_tokens-equal_steps-s0"]
    assert why.startswith("it has no validation cross-entropy") and "cannot score whole" in why


def test_one_seed_resolves_nothing(tmp_path: Path) -> None:
    """Nothing is sampled, so one run has no interval: the words must not promise one."""
    evidence = Evidence.read(record_codes(tmp_path / "toy", searched=0))
    rows = evidence.ablation
    assert rows["val_cross_entropy_low"].isna().all() and set(rows["verdict"]) <= {"", "not resolved"}
    assert "neither an interval nor a p-value" in caption(evidence)
    assert all(one.needed == 3 for one in unresolved(evidence.comparisons)), "the least that tells a spread"
    assert "nothing is resolved" in " ".join(answer(evidence))


def test_cross_entropies_of_other_held_out_clips_are_not_compared(study: Path, tmp_path: Path) -> None:
    runs = load_runs(study)
    mixed = pd.concat([runs, load_runs(record_codes(tmp_path / "toy", "codes/64 held-out clips/last", seeds=(3,)))])
    with pytest.raises(
        ComparisonError, match=r"differ in evaluation\.validation_clips \(512 held-out clips against 64"
    ):
        ablation_table(mixed)
    (tmp_path / "published.csv").write_text("arm,fvd,speedup,val_cross_entropy,protocol\nours,3,2,0.5,native/9x12x12\n")
    with pytest.raises(ComparisonError, match=r"differ in evaluation\.protocol \(codes against native\)"):
        _ = Evidence.read(study, [tmp_path / "published.csv"]).comparable


def test_the_terminal_tells_cross_entropies(study: Path) -> None:
    runs = list(read_study(study).runs.values())
    assert "FVD" not in header(runs) and len(row(runs[0], 0)) == len(header(runs))
    assert summary_header(runs)[-1] == "best val CE" and len(summary(runs)[0]) == len(summary_header(runs))
    told = headline(standing(read_study(study), trials=8, now=0))
    assert "validation cross-entropy" in told and "FVD" not in told


SPACE = """
question: Which window?
experiment:
  data: {layout: tokens, root: ROOT, grid: [5, 2, 4]}
  tokenizer: {num_codes: 16}
  model: {width: 16, depth: 1, heads: 2}
arms: {full: , reco: }
search: {window.length_tokens: {int: [8, 40], step: 8}}
trials: 2
"""


def test_a_search_on_codes_looks_for_speed_and_cross_entropy(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(SPACE)
    space = load_space(path)
    assert space.objectives == {"speedup": "maximize", "val_cross_entropy": "minimize"}
    assert plan(space).shared.grid == (5, 2, 4)
    given = load_space(path, ["objectives={val_cross_entropy: minimize}"])
    assert given.objectives == {"val_cross_entropy": "minimize"}, "what a person gives stays"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("objectives={fvd: minimize}", r"fvd needs pixels, but data\.layout tokens has none; use val_cross_entropy"),
        ("pruning={kind: pareto_asha, metric: kernel_distance}", r"pruning\.metric: kernel_distance needs pixels"),
        ("constraints={fvd: {max: 3}}", r"constraints: fvd needs pixels"),
        ("evaluation.protocol=native-pca", r"evaluation\.protocol \(native-pca\) needs pixels"),
        ("evaluation.flow=true", r"evaluation\.flow \(true\) needs pixels"),
    ],
    ids=["objective", "pruning", "constraint", "protocol", "flow"],
)
def test_what_needs_pixels_is_refused_before_anything_runs(tmp_path: Path, override: str, message: str) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(SPACE)
    with pytest.raises(SettingsError, match=message):
        plan(load_space(path, [override]))
