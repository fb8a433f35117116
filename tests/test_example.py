"""The measured example that comes with the project is whole, and the notebook falls back to it."""

import os
from pathlib import Path
from zipfile import ZipFile

import nbformat
import pytest
from nbclient import NotebookClient

from roadmap import paper
from roadmap.report import aggregate, charts, collect, frame

from .conftest import ROOT

RESULTS = ROOT / "notebooks" / "results"


@pytest.mark.parametrize("study", ["demo", "mini_h100"])
def test_example_has_every_row_with_three_seeds_and_nothing_suspect(study):
    found = collect([RESULTS / f"{study}.zip"])
    assert not found.suspect
    assert not found.unfinished
    (group,) = aggregate(found.runs)
    assert [row.step for row in group.rows] == [step for step in paper.order() if step != "swin"]
    assert {row.n for row in group.rows} == {3}
    assert not group.others
    assert list(charts([group])) == ["roadmap"]
    assert len(frame([group])) == 17


def test_example_tells_nothing_of_the_machine_but_its_kind():
    for path in RESULTS.glob("*.zip"):
        with ZipFile(path) as archive:
            for name in archive.namelist():
                data = archive.read(name)
                assert b"/root" not in data, (path, name)
                assert str(Path.home()).encode() not in data, (path, name)


def test_notebook_shows_the_example_where_there_are_no_runs(tmp_path, monkeypatch):
    """From its own folder; test_notebook.py runs it from the project's."""
    monkeypatch.setenv("ROADMAP_RUNS", str(tmp_path))
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    notebook = nbformat.read(ROOT / "notebooks" / "roadmap.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)
    NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(ROOT / "notebooks")}}
    ).execute(env=dict(os.environ))
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    said = "".join(out.get("text", "") for out in outputs)
    assert "EXAMPLE: 102 measured runs" in said
    assert any("image/png" in out.get("data", {}) for out in outputs)
    assert any("separate d.s. conv" in out.get("data", {}).get("text/plain", "") for out in outputs)
