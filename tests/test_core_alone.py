"""The core runs where ray, MLflow, Optuna, decord and pandas are absent, and importing the package costs nothing."""

from __future__ import annotations

import subprocess
import sys

BLOCKED = ("ray", "mlflow", "optuna", "decord", "pandas", "seaborn", "matplotlib", "typer", "rich")

TRAIN = f"""
import importlib, pkgutil, sys

sys.modules.update(dict.fromkeys({BLOCKED!r}))  # None: looks absent to `import` and to `find_spec`
import reco_tune
outside = (
    "reco_tune.api", "reco_tune.simulation", "reco_tune.study", "reco_tune.reporting", "reco_tune.tracking",
    "reco_tune.cli", "reco_tune.__main__", "reco_tune._bundled",
)
modules = []
for found in pkgutil.walk_packages(reco_tune.__path__, "reco_tune.", onerror=lambda name: None):
    if found.name.startswith(outside) and not found.name.startswith("reco_tune.study_log"):
        continue
    importlib.import_module(found.name)
    modules.append(found.name)
import torch
from reco_tune.model import VideoTransformer
from reco_tune.training import window_loss
from reco_tune.windows import WindowSampler

torch.set_num_threads(1)
model = VideoTransformer(8, 10, 2, 16, 2, 2, generator=torch.Generator().manual_seed(0))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
sampler = WindowSampler(10, 4, 2, 0.5, seed=0)
tokens, labels = torch.arange(10).repeat(4, 1) % 8, torch.zeros(4, dtype=torch.long)
losses = []
for _ in range(30):
    terms = window_loss(model, tokens, labels, sampler.draw(), 4, continuity_weight=0.1)
    optimizer.zero_grad()
    terms.total.backward()
    optimizer.step()
    losses.append(terms.cross_entropy.item())
assert losses[-1] < 0.5 * losses[0], losses
assert model.generate(labels, torch.Generator().manual_seed(0)).shape == (4, 10)
print(len(modules))
"""

IMPORT = """
import sys
before = set(sys.modules)
import reco_tune
new = {name.split(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names
assert new == {"reco_tune"}, new
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


def test_the_core_imports_trains_and_samples_with_the_rest_absent() -> None:
    finished = run(TRAIN)
    assert finished.returncode == 0, finished.stderr
    assert int(finished.stdout) > 20  # the walk has found the packages


def test_importing_the_package_is_silent_and_loads_nothing_else() -> None:
    finished = run(IMPORT)
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "", "")
