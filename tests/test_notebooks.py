"""The notebooks run from top to bottom, and what is stored in them is what a person gets, and nothing of a machine."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nbformat
import pytest
from notebooks import NOTEBOOKS, run_notebooks


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_with_its_output(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run from top to bottom"
    assert code[-1].outputs and not any(one.output_type == "error" for cell in code for one in cell.outputs)
    text = json.dumps([cell.outputs for cell in code])
    assert not re.findall(r"(?<![\w<])/(?:tmp|home|root|work|usr|var)/\w+", text), "paths of a machine"
    assert path.stem != "study" or "3 of 3 runs ended" in text, "Tune cleared the cell that shows progress"
    assert path.stat().st_size < 300_000


@pytest.mark.slow
def test_the_notebooks_run_and_say_what_is_stored(tmp_path: Path) -> None:
    """Text and tables of one type: numbers of times differ, those of results may with the machine."""
    for path, notebook in run_notebooks(tmp_path).items():
        stored = nbformat.read(path, as_version=4)
        for ours, theirs in zip(notebook.cells, stored.cells, strict=True):
            assert ours.source == theirs.source
            kinds = [
                [sorted(one.get("data", {"text": 0})) for one in cell.get("outputs", [])] for cell in (ours, theirs)
            ]
            assert kinds[0] == kinds[1], ours.source
        assert path.stem != "study" or "3 of 3 runs ended" in json.dumps(notebook.cells)
