"""A space that can be edited in Python. Every change is checked at once, by the same checks as a YAML file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reco_tune.errors import SettingsError

if TYPE_CHECKING:
    from reco_tune.settings import Space


class EditableSpace:
    """A study before it runs. Keys are those of `--set` and of YAML files:

        space["training.steps"] = 2000
        space["seeds"] = [0, 1, 2]
        space.arms["mine"] = {"objective.continuity_weight": 0.5}
        space.search["window.length_blocks"] = {"int": [1, 4]}

    An invalid change raises SettingsError, and the space stays unchanged.
    """

    def __init__(self, checked: Space) -> None:
        self.checked = checked
        """The frozen settings that a study runs with."""

    @property
    def arms(self) -> MutableMapping[str, Any]:
        """The fixed arms by name; {} takes a known arm unchanged."""
        return _Part(self, "arms")

    @property
    def search(self) -> MutableMapping[str, Any]:
        """The search ranges by setting."""
        return _Part(self, "search")

    @property
    def objectives(self) -> MutableMapping[str, Any]:
        """The objectives: `maximize` or `minimize` by metric."""
        return _Part(self, "objectives")

    @property
    def constraints(self) -> MutableMapping[str, Any]:
        """The constraints: bounds by metric."""
        return _Part(self, "constraints")

    def __getitem__(self, key: str) -> Any:
        """A setting that all runs share, or a key of the study."""
        self._check(key)
        values = self._values()
        for nested in (values, values["experiment"]):
            found: Any = nested
            for part in key.split("."):
                found = found.get(part) if isinstance(found, dict) else None
            if found is not None:
                return found
        from reco_tune.settings import arm_experiment

        return arm_experiment(self.checked, next(iter(self.checked.arms), None)).flat().get(key)

    def __setitem__(self, key: str, value: Any) -> None:
        from reco_tune.settings import Experiment, flatten

        self._check(key)
        whole = key in Experiment.model_fields and isinstance(value, Mapping)
        self._take(self._values(), flatten({key: dict(value)}) if whole else {key: value})

    def __repr__(self) -> str:
        """The space as YAML."""
        import yaml

        kept = self.checked.model_dump(mode="json", exclude_defaults=True, exclude={"source"})
        return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)

    def save(self, path: str | Path) -> None:
        """Writes the YAML file for the command line."""
        Path(path).write_text(repr(self), encoding="utf-8")

    def _check(self, key: str) -> None:
        """Checks that a key exists.

        Raises:
            SettingsError: if neither a run nor a study has such a key; suggests the nearest.
        """
        from reco_tune.parts import nearest
        from reco_tune.settings import Experiment, Space, known_keys

        studys = [name for name in Space.model_fields if name != "source"]
        inside = key.split(".")[0] in studys and not key.startswith("resources.")
        if not inside and key not in (*known_keys(), *Experiment.model_fields):
            raise SettingsError(f"{key} is not a setting; {nearest(key, (*known_keys(), *studys))}")

    def _values(self) -> dict[str, Any]:
        values = self.checked.model_dump(mode="json")
        del values["source"]
        return values

    def _take(self, values: dict[str, Any], changes: Mapping[str, Any]) -> None:
        from reco_tune.settings import build_space

        self.checked = build_space(values, self.checked.source or Path("space"), changes)


class _Part(MutableMapping[str, Any]):
    """A mapping in a space. It checks every new value."""

    def __init__(self, space: EditableSpace, name: str) -> None:
        self._space, self._name = space, name

    def __getitem__(self, key: str) -> Any:
        return self._space._values()[self._name][key]

    def __setitem__(self, key: str, value: Any) -> None:
        values = self._space._values()
        values[self._name][key] = value
        self._space._take(values, {})

    def __delitem__(self, key: str) -> None:
        values = self._space._values()
        del values[self._name][key]
        self._space._take(values, {})

    def __iter__(self) -> Iterator[str]:
        return iter(self._space._values()[self._name])

    def __len__(self) -> int:
        return len(self._space._values()[self._name])

    def __repr__(self) -> str:
        return repr(dict(self))
