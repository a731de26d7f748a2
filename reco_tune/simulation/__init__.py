"""A study before it runs: the real engine on simulated time, with faults drawn by a seed.

Stands above `study`, whose search, pruning, log and dispatcher it drives, and beside nothing else: whoever only runs
studies never loads it.
"""

from reco_tune.simulation.faults import FaultRates
from reco_tune.simulation.simulate import Simulated, simulate
from reco_tune.simulation.workload import Workload

__all__ = ["FaultRates", "Simulated", "Workload", "simulate"]
