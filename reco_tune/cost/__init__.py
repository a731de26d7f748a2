"""What training costs: counted in operations, measured in seconds, forecast for a plan."""

from reco_tune.cost.calibration import calibrate, scheme_limit
from reco_tune.cost.forecast import (
    Forecast,
    RunForecast,
    forecast,
    least_memory,
    measure_flops_per_second,
)
from reco_tune.cost.planning import Plan, PlannedRun, budget_steps, estimated_speedup, plan
from reco_tune.model.flops import speedup_limit, step_flops

__all__ = [
    "Forecast",
    "Plan",
    "PlannedRun",
    "RunForecast",
    "budget_steps",
    "calibrate",
    "estimated_speedup",
    "forecast",
    "least_memory",
    "measure_flops_per_second",
    "plan",
    "scheme_limit",
    "speedup_limit",
    "step_flops",
]
