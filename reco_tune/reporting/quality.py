"""The metric that ranks runs: FVD, or the validation cross-entropy for codes that cannot be decoded to pixels
(`data.layout: tokens`). Lower is better in both.
"""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from reco_tune import quantities


class Quality(NamedTuple):
    """The metric and what it is called; every table names its columns after it."""

    key: str
    name: str
    """In a sentence."""
    digits: int
    margin: float
    """The share of the baseline's value that an arm may lose and still count as having recovered it. A cross-entropy is
    a logarithm, so a hundredth of it is much.
    """
    title: str
    """Title of an axis and heading of a column."""

    @property
    def low(self) -> str:
        return f"{self.key}_low"

    @property
    def high(self) -> str:
        return f"{self.key}_high"

    @property
    def ends(self) -> tuple[str, str, str]:
        """Value and ends of its 95% interval."""
        return self.key, self.low, self.high

    @property
    def delta(self) -> str:
        return f"{self.key}_delta"

    @property
    def p_value(self) -> str:
        return f"{self.key}_p_value"


FVD = Quality(quantities.FVD.name, "FVD", 2, 0.25, "FVD")
CROSS_ENTROPY = Quality(quantities.VAL_CROSS_ENTROPY.name, "validation cross-entropy", 4, 0.01, "val CE")


def quality_of(table: pd.DataFrame) -> Quality:
    """The metric that ranks the rows of a table. Rows without pixels have no column of FVD."""
    return FVD if FVD.key in table else CROSS_ENTROPY


def quality_of_layouts(layouts: set[object]) -> Quality:
    """The metric that ranks runs with these values of `data.layout`."""
    return CROSS_ENTROPY if layouts == {"tokens"} else FVD
