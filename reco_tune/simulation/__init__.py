"""Simulates a study before it runs: the real engine on simulated time, with faults drawn from a seed.

It drives the search, pruning, log and dispatcher of `study`. Nothing in a real study imports it.
"""

from reco_tune.simulation.faults import FaultRates
from reco_tune.simulation.simulate import Simulated, simulate
from reco_tune.simulation.workload import Workload

__all__ = ["FaultRates", "Simulated", "Workload", "simulate"]
