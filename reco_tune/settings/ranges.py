"""The ranges from which the settings of a run are chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from reco_tune.errors import SettingsError
from reco_tune.settings.fields import check_value
from reco_tune.settings.sections import SettingsSection

_Whole = tuple[int, int]
_Real = tuple[float, float]
_Step = Annotated[float, Field(gt=0)]
_Number = int | float
# Named here because the fields `int` and `float` of Range hide the builtins inside it.


class Range(SettingsSection):
    """The range of one searched setting. Give exactly one of `int`, `float` and `choice`."""

    int: _Whole | None = None
    """Lowest and highest whole number."""
    float: _Real | None = None
    """Lowest and highest number."""
    choice: tuple[Any, ...] | None = None
    """The values to choose from."""
    log: bool = False
    """Whether the number is drawn on a log scale."""
    step: _Step | None = None
    """Distance between the values that may be drawn."""
    when: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """Conditions on other searched settings: the value, or values, that they must have. If they have others, this
    setting is not drawn and keeps the value in `experiment`.
    """

    @field_validator("when", mode="before")
    @classmethod
    def _one_value(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {key: tuple(value) if isinstance(value, list | tuple) else (value,) for key, value in given.items()}

    @model_validator(mode="after")
    def _check(self) -> Range:
        given = [name for name in ("int", "float", "choice") if getattr(self, name) is not None]
        if len(given) != 1:
            raise SettingsError(f"a search range needs exactly one of int, float and choice, got {given or 'none'}")
        if self.choice is not None and not self.choice:
            raise SettingsError("a search range's choice is empty; name the values to choose from")
        bounds = self.int or self.float
        if bounds and bounds[0] > bounds[1]:
            raise SettingsError(f"a search range must not end ({bounds[1]}) below its start ({bounds[0]}); swap them")
        if self.log and (not bounds or bounds[0] <= 0):
            raise SettingsError("a log range needs int or float bounds above 0")
        if self.log and self.step:
            raise SettingsError("a search range takes log or step, not both; leave one out")
        if bounds and self.step:
            self._check_step(*bounds)
        return self

    def _check_step(self, low: _Number, high: _Number) -> None:
        step = Decimal(str(self.step)).normalize()
        if self.int and step % 1:
            raise SettingsError(f"a search range of whole numbers has a step of {step:f}; give a whole step")
        if rest := (Decimal(str(high)) - Decimal(str(low))) % step:
            raise SettingsError(
                f"a search range from {low} to {high} is not a whole number of steps of {step:f}; end it at"
                f" {(Decimal(str(high)) - rest).normalize():f} or change the step"
            )

    def holds(self, value: Any) -> bool:
        """Whether the range contains a value."""
        if self.choice is not None:
            return value in self.choice
        bounds = self.int or self.float
        assert bounds is not None
        if isinstance(value, bool | str) or not bounds[0] <= value <= bounds[1]:
            return False
        if self.int is not None and value != round(value):
            return False
        return not self.step or abs((value - bounds[0]) / self.step - round((value - bounds[0]) / self.step)) < 1e-8

    def of(self, key: str, group: str = "search") -> Range:
        """The range with its choices parsed as values of the setting.

        Args:
            group: the section of the space file that holds the range, for messages.

        Raises:
            SettingsError: if there is no such setting, or it cannot have the values that may be drawn.
        """
        where = f"{group}: {key}"
        if self.choice is not None:
            kept = [check_value(key, value, group) for value in self.choice]
            for value in kept:
                if not isinstance(value, bool | int | float | str | None):
                    raise SettingsError(
                        f"{where}: a choice of {value!r} is not a number, word, true or false; change it"
                    )
                if kept.count(value) > 1:
                    raise SettingsError(f"{where}: the choice {value!r} is given twice; keep one")
            return self.model_copy(update={"choice": tuple(kept)})
        bounds = self.int or self.float
        assert bounds is not None
        low, high = bounds
        between = low + (float(self.step) if self.step else (high - low) * (math.sqrt(5) - 1) / 2)
        for value in (low, high) if self.int or low == high else (low, high, between):
            if isinstance(check_value(key, value, group), bool | str):
                raise SettingsError(f"{where}: a range of numbers, but this setting is not a number; give choice")
        return self


def parents_first(search: Mapping[str, Range]) -> list[str]:
    """The keys, sorted so that conditions come first.

    Raises:
        SettingsError: if conditions form a circle.
    """
    order: list[str] = []
    while len(order) < len(search):
        ready = [key for key in search if key not in order and set(search[key].when) <= set(order)]
        if not ready:
            circle = ", ".join(key for key in search if key not in order)
            raise SettingsError(f"search: the conditions (when) of {circle} form a circle; remove one of them")
        order += ready
    return order


def ranges_of(points: list[dict[str, Any]]) -> dict[str, Range]:
    """The ranges of a search that consists of points alone: each setting with its values, in order of appearance.

    Raises:
        SettingsError: if the points have different settings.
    """
    for number, point in enumerate(points, 1):
        if point.keys() != points[0].keys():
            odd = sorted(point.keys() ^ points[0].keys())[0]
            raise SettingsError(
                f"points: only one of point {number} and the first has {odd}; give every point the same settings, or"
                " give search the ranges to draw them from"
            )
    values = {key: list(dict.fromkeys(point[key] for point in points)) for key in (points[0] if points else ())}
    return {key: Range(choice=tuple(own)) for key, own in values.items()}
