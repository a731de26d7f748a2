"""What training costs: counted in operations, measured in seconds, forecast for a plan."""

from reco_tune.cost.calibration import calibrate, scheme_limit
from reco_tune.cost.forecast import (
    Forecast,
    RunForecast,
    forecast,
    forecast_run,
)
from reco_tune.cost.memory import (
    MemoryByPhase,
    clips_sampled_at_once,
    memory_by_phase,
    refuse_what_cannot_fit,
    ways_out,
)
from reco_tune.cost.planning import Plan, PlannedRun, budget_steps, estimated_speedup, plan
from reco_tune.cost.rates import ASSUMED_GPU, Rates, measure_rates, seconds_per_clip
from reco_tune.model.flops import speedup_limit, step_flops

__all__ = [
    "ASSUMED_GPU",
    "Forecast",
    "MemoryByPhase",
    "Plan",
    "PlannedRun",
    "Rates",
    "RunForecast",
    "budget_steps",
    "calibrate",
    "clips_sampled_at_once",
    "estimated_speedup",
    "forecast",
    "forecast_run",
    "measure_rates",
    "memory_by_phase",
    "plan",
    "refuse_what_cannot_fit",
    "scheme_limit",
    "seconds_per_clip",
    "speedup_limit",
    "step_flops",
    "ways_out",
]
