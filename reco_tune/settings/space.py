"""A search space: the question, the arms that are compared, and the settings that Optuna may choose."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from reco_tune import quantities as q
from reco_tune.errors import SettingsError
from reco_tune.settings.fields import check_value
from reco_tune.settings.ranges import Range, parents_first, ranges_of
from reco_tune.settings.sections import LocalPath, Options, SamplerKind, Seed, SettingsSection
from reco_tune.settings.tuning import Tune

ARMS: dict[str, dict[str, Any]] = {
    "full": {"window.scheme": "full", "objective.continuity_weight": 0.0},
    "masked_full": {"window.scheme": "masked_full", "objective.continuity_weight": 0.0},
    "full_continuity": {"window.scheme": "full", "objective.continuity_weight": 0.1},
    "fewer_frames": {"window.scheme": "fewer_frames", "objective.continuity_weight": 0.0},
    "fewer_frames_tokens": {"window.scheme": "fewer_frames_tokens", "objective.continuity_weight": 0.0},
    "local": {
        "window.scheme": "window",
        "window.stride_tokens": 1,
        "window.first_frame_probability": 0.0,
        "objective.continuity_weight": 0.0,
    },
    "local_first": {
        "window.scheme": "window",
        "window.first_frame_probability": "uniform",
        "objective.continuity_weight": 0.0,
    },
    "local_balanced": {
        "window.scheme": "window",
        "window.first_frame_probability": 0.5,
        "objective.continuity_weight": 0.0,
    },
    "reco": {"window.scheme": "window", "window.first_frame_probability": 0.5, "objective.continuity_weight": 0.1},
    "norm_penalty": {
        "window.scheme": "window",
        "window.first_frame_probability": 0.5,
        "objective.continuity_weight": 0.0,
        "objective.norm_weight": 0.1,
    },
}
"""The arms of the paper and their controls, as settings. A space file may override any key, or define its own
arms.
"""

BASELINE = "full"
"""The arm that all others are compared with. One run at its full budget serves both budgets. A smaller compute budget
needs its own run.
"""

SEARCH = "search"
"""Arm name of sampled runs, which are called `search-0000` and so on."""
ARM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""Allowed arm names. Folders are named after arms."""

PROXIES = (q.VAL_CROSS_ENTROPY.name, q.TRAIN_CROSS_ENTROPY.name, q.KERNEL_DISTANCE.name)
"""Quality metrics that can be known at a rung. All others are measured after training."""
RUNG_CLIPS = 256
"""Clips for a kernel distance at a rung, at most `evaluation.samples`. This is an eighth of the default of a full
evaluation.
"""

Budget = Literal["equal_steps", "equal_compute", "half_compute", "quarter_compute", "eighth_compute"]
COMPUTE_SHARES: dict[str, float] = {
    "equal_compute": 1.0,
    "half_compute": 1 / 2,
    "quarter_compute": 1 / 4,
    "eighth_compute": 1 / 8,
}
"""Compute budgets, as shares of the compute of the baseline's whole training."""
COST_CURVE = "equal_cost_curve"
"""Short for all compute budgets, from the smallest share to the whole."""
Direction = Literal["maximize", "minimize"]


def stands_under(run_budget: str, budget: str) -> bool:
    """Whether a run belongs to a budget. A run of `both` belongs to every full budget, but not to smaller shares."""
    return run_budget == budget or (run_budget == "both" and COMPUTE_SHARES.get(budget, 1.0) == 1)


class Sampler(SettingsSection):
    """The algorithm that proposes the next configuration."""

    kind: SamplerKind = "tpe"
    """Optuna's sampler: `tpe`, `gp`, `nsga2`, `sobol`, `random`, `grid`, or the import path of your own. `gp` models
    each objective with a Gaussian process; after 200 trials a proposal would take seconds, so `tpe` takes over. `sobol`
    spreads points evenly (quasi-Monte Carlo). `grid` tries every point.
    """
    tell_arms: bool = True
    """Whether the sampler learns from fixed arms that the search could have proposed."""
    seed: Seed = 0
    """Seed of the search. A proposal depends only on the seed and on the trials that finished before, so a search can
    be replayed from its log.
    """
    options: Options = {}
    """Options of your own sampler."""


class Bound(SettingsSection):
    """The values that a constraint allows. Give `min`, `max` or both."""

    min: float | None = None
    """Lowest value allowed."""
    max: float | None = None
    """Highest value allowed."""

    @model_validator(mode="after")
    def _check(self) -> Bound:
        if self.min is None and self.max is None:
            raise SettingsError("a constraint needs min or max; give one")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise SettingsError(f"a constraint's min ({self.min:g}) must not exceed its max ({self.max:g}); swap them")
        return self

    def violation(self, value: float) -> float:
        """How far a value lies outside the bounds; at most 0 if it is allowed."""
        over = value - self.max if self.max is not None else -float("inf")
        under = self.min - value if self.min is not None else -float("inf")
        return over if over >= under else under

    def __str__(self) -> str:
        return " and ".join(
            f"{word} {end:g}" for word, end in (("at least", self.min), ("at most", self.max)) if end is not None
        )


class Pruning(SettingsSection):
    """Which runs to stop early: sampled and tuning runs, and those of fixed arms where you ask for it."""

    kind: Literal["none", "pareto_asha"] = "none"
    """`pareto_asha` prunes at some rungs. There, a run continues if it is among the best runs that have reached that
    rung, ranked by Pareto dominance. A tuning run is compared with those of its arm and seed.
    """
    metric: str = q.VAL_CROSS_ENTROPY.name
    """The metric that replaces objectives that are unknown at a rung, such as FVD: `val_cross_entropy`,
    `train_cross_entropy` (over each run's own windows) or `kernel_distance`. For the last, a run generates 256 clips at
    every rung where it may be pruned.
    """
    grace_rungs: int = Field(1, ge=1)
    """Rungs (of `training.rungs`) that every run completes. The first pruning happens at the last of them."""
    reduction_factor: int = Field(3, ge=2)
    """With a factor of 3, one run in three continues, and the next pruning comes after three times as many rungs."""
    arms: bool = False
    """Whether fixed arms may be stopped too, but never the baseline. At a rung, a run is compared with those of the
    other arms that have its budget and training seed. If one seed of an arm is stopped, the arm is in no comparison at
    that budget, and its other seeds also stop at their next rung where runs are judged.
    """

    @model_validator(mode="after")
    def _check(self) -> Pruning:
        if self.kind != "none" and self.metric not in PROXIES:
            raise SettingsError(
                f"pruning.metric ({self.metric}) is not known at rungs; take {', '.join(PROXIES[:-1])} or {PROXIES[-1]}"
            )
        if self.arms and self.kind == "none":
            raise SettingsError("pruning.arms is true, but pruning.kind is none; take pareto_asha, or leave arms out")
        return self

    @property
    def generates_clips(self) -> bool:
        """Whether prunable runs generate clips at the rungs where pruning is decided."""
        return self.kind != "none" and self.metric == q.KERNEL_DISTANCE.name


def on_codes(experiment: Mapping[str, Any]) -> bool:
    """Whether nested or dotted settings have `data.layout: tokens`, codes without a decoder."""
    data = experiment.get("data")
    layout = data.get("layout") if isinstance(data, Mapping) else None
    return "tokens" in (layout, experiment.get("data.layout"))


ON_CODES: dict[str, Direction] = {q.SPEEDUP.name: "maximize", q.VAL_CROSS_ENTROPY.name: "minimize"}
"""Objectives of studies without pixels."""


class Keep(SettingsSection):
    """What finished runs leave on disk. Curves, samples and results always stay."""

    checkpoints: Literal["none", "last", "best"] = "last"
    """For runs that were evaluated or pruned. `last` keeps the last checkpoint, so that the run can be trained for
    longer. `best` keeps instead the weights of the rung with the lowest validation loss (`training.keep_best`).
    """
    models: Literal["all", "frontier", "none"] = "all"
    """Whose trained weights to keep: those of `all` runs; of the `frontier`, the runs that no other run beats in
    every objective at the end of the study; or `none`. A run without weights cannot be scored again or sampled from.
    """


class Limits(SettingsSection):
    """Limits at which a study stops before it is finished. Runs in progress then stop at their next rung. With a
    higher limit they continue from there.
    """

    device_hours: float | None = Field(None, gt=0)
    """Hours of all workers together, for calibration, training, generation and evaluation."""
    wall_hours: float | None = Field(None, gt=0)
    """Hours in which the study was at work, without pauses between two commands."""
    trials: int | None = Field(None, ge=1)
    """Number of sampled runs that have ended."""


class OnEvent(SettingsSection):
    """Notifications. Each is a shell command, a webhook address, or a list of them. A command gets the message as
    JSON on its standard input, and one sentence in the variable RECO_TUNE_TEXT. A webhook gets the JSON. To keep a
    secret address out of the file, put it into an environment variable and write `$NAME`.
    """

    end: str | tuple[str, ...] = ()
    """At the end of the study."""
    failure: str | tuple[str, ...] = ()
    """When a run fails, or the study cannot continue."""
    new_best: str | tuple[str, ...] = ()
    """When a run is better in an objective than all before it. Measured speeds do not count."""

    def commands(self, event: str) -> tuple[str, ...]:
        """The commands and webhooks for an event."""
        given: str | tuple[str, ...] = getattr(self, event)
        return (given,) if isinstance(given, str) else given


class Space(SettingsSection):
    """A study: the question, the arms, the budgets and the search."""

    question: str
    """What the study answers, in one sentence."""
    experiment: dict[str, Any]
    """The settings that all runs share: inline, or the path of an experiment file beside the space file."""
    arms: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """The fixed arms by name. Each may override settings. A name that ReCo-Tune knows, such as `reco`, brings its own
    settings.
    """
    budgets: tuple[Budget | Literal["equal_cost_curve"], ...] = ("equal_steps",)
    """How long each arm trains. `equal_steps`: the baseline's number of steps. `equal_compute`: as many steps as the
    baseline's cost buys at the arm's speed. `half_compute`, `quarter_compute` and `eighth_compute`: the same for a
    share of that cost; the baseline then runs at that share and, as the reference, at its whole budget.
    `equal_cost_curve`: all four compute budgets.
    """
    seeds: tuple[Seed, ...] = (0,)
    """Training seeds of the fixed arms."""
    tune: Tune | None = None
    """How settings are chosen for each arm before the runs of the table."""
    search: dict[str, Range] = Field(default_factory=dict)
    """The searched settings: dotted key -> range."""
    points: tuple[dict[str, Any], ...] = ()
    """Points that the search tries first, each a mapping of searched settings to values; the sampler draws what a point
    leaves out. Without `search`, or with the sampler `grid`, these points are the whole search.
    """
    trials: int = Field(0, ge=0)
    """Number of configurations that the search samples. If the points are the whole search, it defaults to their
    number.
    """
    objectives: dict[str, Direction] = {"speedup": "maximize", "fvd": "minimize"}
    """The metrics that the search optimises, with their better direction. With `data.layout: tokens` they are `speedup`
    and `val_cross_entropy`, because FVD needs pixels.
    """
    constraints: dict[str, Bound] = Field(default_factory=dict)
    """Bounds on metrics. The search avoids configurations that break them, and the log names the runs that do."""
    sampler: Sampler = Sampler()
    repeats: Literal["reuse", "new_seed"] = "reuse"
    """What happens if the search proposes a configuration again: it gets the known result (`reuse`), or runs with the
    next training seed (`new_seed`).
    """
    finalist_seeds: int = Field(0, ge=0)
    """Further training seeds for each finalist. A finalist is a sampled run that no other run beats in every objective
    at the end of the search, but that another run could beat within the 95% intervals of both. Where intervals do not
    overlap, more seeds would resolve nothing.
    """
    warm_start: tuple[LocalPath, ...] = ()
    """Folders of earlier studies. The search starts with those of their evaluated runs that have this study's
    settings.
    """
    pruning: Pruning = Pruning()
    keep: Keep = Keep()
    stop_after: Limits = Limits()
    on_event: OnEvent = OnEvent()
    resources: dict[str, Any] = Field(default_factory=dict)
    """Overrides of the experiment's `resources`."""
    source: Path | None = None
    """The file that the space was read from. Not a setting."""

    @model_validator(mode="after")
    def _check(self) -> Space:
        if not self.budgets:
            raise SettingsError("budgets is empty; give equal_steps, or several")
        curve = tuple(reversed(COMPUTE_SHARES))
        named = [one for budget in self.budgets for one in (curve if budget == COST_CURVE else (budget,))]
        object.__setattr__(self, "budgets", tuple(dict.fromkeys(named)))
        counted = [budget for budget in self.budgets if budget in COMPUTE_SHARES]
        if counted and self.arms and BASELINE not in self.arms:
            raise SettingsError(
                f"budgets has {counted[0]}, which is a share of the baseline's cost, but arms has no `{BASELINE}`; add"
                " it"
            )
        if len(set(self.seeds)) != len(self.seeds) or not self.seeds:
            raise SettingsError(f"seeds {list(self.seeds)} must be at least one and all different")
        if "objectives" not in self.model_fields_set and on_codes(self.experiment):
            object.__setattr__(self, "objectives", dict(ON_CODES))
        if not self.objectives:
            raise SettingsError("objectives is empty; give one, for example fvd: minimize, or leave it out")
        self._check_arms()
        self._check_search()
        self._check_tune()
        if self.trials and not self.search:
            raise SettingsError(f"trials is {self.trials}, but search has no ranges; add some or set trials to 0")
        if not self.arms and not self.trials:
            raise SettingsError("a space needs arms, or search ranges and trials; it has neither")
        return self

    @field_validator("sampler", mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        """`sampler: grid` is short for `sampler: {kind: grid}`."""
        return {"kind": given} if isinstance(given, str) else given

    def _check_search(self) -> None:
        points = [{key: check_value(key, value, "points") for key, value in point.items()} for point in self.points]
        search = {key: range_.of(key) for key, range_ in self.search.items()} or ranges_of(points)
        parents = {parent: key for key, range_ in search.items() for parent in range_.when}
        for parent, key in parents.items():
            if parent not in search:
                raise SettingsError(
                    f"search: {key} is conditional on {parent}, which is not searched; give it a range, or remove the"
                    " condition (when)"
                )
        parents_first(search)
        for number, point in enumerate(points, 1):
            for key, value in point.items():
                if key not in search:
                    raise SettingsError(
                        f"points: point {number} has {key}, but search has no range for it; give it one"
                    )
                if not search[key].holds(value):
                    raise SettingsError(
                        f"points: {key} of point {number} ({value}) lies outside of its range; change one of them"
                    )
        whole = bool(points) and (not self.search or self.sampler.kind == "grid")
        if whole and not self.trials:
            object.__setattr__(self, "trials", len(points))
        if whole and self.sampler.kind != "grid":
            object.__setattr__(self, "sampler", self.sampler.model_copy(update={"kind": "grid"}))
        object.__setattr__(self, "search", search)
        object.__setattr__(self, "points", tuple(points))

    def _check_tune(self) -> None:
        """Tuning chooses settings that the arms leave open, on its own seeds."""
        if self.tune is None:
            return
        if not self.arms:
            raise SettingsError("tune chooses settings of arms, but the space has none; add arms or leave tune out")
        if both := sorted(set(self.tune.seeds) & set(self.seeds)):
            raise SettingsError(
                f"tune.seeds has {both[0]}, also a seed of the table: the runs that choose its values would also"
                " evaluate them; give tune.seeds other numbers"
            )
        for key in self.tune.per_arm:
            for arm, own in self.arms.items():
                if key in {**ARMS.get(arm, {}), **own}:
                    raise SettingsError(
                        f"tune.per_arm: arm `{arm}` has its own {key}; remove it from the arm, or do not tune {key}"
                    )
            if self.trials and key not in self.search:
                raise SettingsError(
                    f"tune.per_arm: {key} is chosen for the arms, but sampled runs would keep one value beside them;"
                    " give it a range under search, too"
                )

    def _check_arms(self) -> None:
        for name in self.arms:
            if not ARM_NAME.fullmatch(name):
                raise SettingsError(
                    f"the arm {name!r} must have a name of letters, digits, dots, dashes and underscores, at most 100,"
                    " because its folders have that name; change it"
                )
            if re.fullmatch(rf"{SEARCH}(-\d+.*)?", name):
                raise SettingsError(f"arm `{name}` has the name of sampled runs; rename it")
        if len({name.lower() for name in self.arms}) < len(self.arms):
            raise SettingsError(
                f"two of the arms {', '.join(self.arms)} differ only in upper and lower case, which some file systems"
                " ignore; rename one"
            )
