"""Runs the notebooks of the documentation from top to bottom, in their order. Not a test.

`python tests/notebooks.py` stores their output anew, after a change of what they show.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = [ROOT / "docs" / "notebooks" / f"{name}.ipynb" for name in ("study", "reading")]
"""The second reads what the first has run."""


def run_notebooks(folder: Path) -> dict[Path, nbformat.NotebookNode]:
    """Each notebook with its output, both run in one folder.

    Raises:
        nbclient.exceptions.CellExecutionError: where a cell fails.
    """
    os.environ["PYTHONPATH"] = str(ROOT)  # the kernel is a process of its own
    done = {}
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)  # when it ran
            if cell.cell_type == "code":  # what libraries warn of, on this machine
                cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
        done[path] = notebook
    return done


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        for where, notebook in run_notebooks(Path(made)).items():
            nbformat.write(notebook, where)
