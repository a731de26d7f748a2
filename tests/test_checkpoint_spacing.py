from __future__ import annotations

import numpy as np
import pytest

from reco_tune.cost.checkpoint_spacing import advise, best_spacing, share_lost
from reco_tune.settings import make_experiment


@pytest.mark.parametrize(("write", "mtbf"), [(1.3, 30 * 86400.0), (60.0, 86400.0), (300.0, 6 * 3600.0)])
def test_the_best_spacing_loses_least(write: float, mtbf: float) -> None:
    spacings = np.geomspace(write, mtbf, 20_000)
    least = share_lost(spacings, write, mtbf).min()  # type: ignore[arg-type, attr-defined]
    assert share_lost(best_spacing(write, mtbf), write, mtbf) == pytest.approx(least, rel=0.02)


def test_where_writing_takes_longer_than_machines_last() -> None:
    assert best_spacing(300.0, 100.0) == 100.0


def test_a_run_on_more_machines_fails_more_often() -> None:
    def spacing(workers: int) -> float:
        overrides = {"data.layout": "digits", "resources.workers": workers, "training.batch_size": 32}
        return advise(make_experiment({}, overrides, where="test"), mtbf_days=30).spacing_seconds

    assert spacing(8) == spacing(1) and spacing(32) == pytest.approx(spacing(1) / 2, rel=0.01)
