"""What training costs: counted in operations, measured in seconds, forecast for a plan."""

from reco_tune.cost.calibration import arm_limit, calibrate
from reco_tune.cost.forecast import (
    Forecast,
    RunForecast,
    budget_steps,
    forecast,
    least_memory,
    measure_flops_per_second,
)
from reco_tune.model.flops import speedup_limit, step_flops

__all__ = [
    "Forecast",
    "RunForecast",
    "arm_limit",
    "budget_steps",
    "calibrate",
    "forecast",
    "least_memory",
    "measure_flops_per_second",
    "speedup_limit",
    "step_flops",
]
