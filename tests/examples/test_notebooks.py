"""The notebooks' cells run from top to bottom, and what is committed was run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "examples" / "notebooks").glob("*.ipynb"))


def cells(notebook: Path) -> list[dict]:
    """Read a notebook's cells of code."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    return [cell for cell in content["cells"] if cell["cell_type"] == "code"]


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_cells_of_a_notebook_run_from_top_to_bottom(notebook, tmp_path, monkeypatch):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "notebook"}
    for cell in cells(notebook):
        exec(compile("".join(cell["source"]), notebook.name, "exec"), names)
    from matplotlib import pyplot

    pyplot.close("all")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_a_committed_notebook_was_run_without_an_error_and_has_pictures(notebook):
    found = cells(notebook)
    outputs = [output for cell in found for output in cell["outputs"]]
    assert [cell["execution_count"] for cell in found] == list(range(1, len(found) + 1))
    assert [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"] == []
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3


def test_there_are_two_notebooks():
    assert [notebook.stem for notebook in NOTEBOOKS] == ["federated", "prune"]
