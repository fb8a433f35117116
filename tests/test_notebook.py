"""The notebook: stored without outputs, runs from both folders, and says when it shows the example."""

import shutil
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from roadmap.runs.pack import pack
from tests.fabricate import unfinished, write_run

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "notebooks" / "roadmap.ipynb"


def executed(folder: Path):
    """Run the stored notebook with this interpreter's kernel, started in a folder."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    return notebook


def text_of(notebook) -> str:
    return "\n".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))


def pictures_of(notebook) -> list[str]:
    return [
        o.data["image/png"]
        for cell in notebook.cells
        for o in cell.get("outputs", [])
        if "image/png" in o.get("data", {})
    ]


def test_it_is_stored_without_outputs_and_every_code_cell_follows_a_sentence():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    kinds = [cell.cell_type for cell in notebook.cells]
    for before, cell in zip(kinds, notebook.cells, strict=False):
        assert cell.cell_type != "code" or (not cell.outputs and cell.execution_count is None)
        assert before in {"markdown", "code"}
    assert all(kinds[i - 1] == "markdown" for i, kind in enumerate(kinds) if kind == "code")


def test_it_draws_the_runs_it_is_given(tmp_path, monkeypatch):
    for seed in range(2):
        write_run(tmp_path, "resnet", seed, top1=40.0 + seed)
        write_run(tmp_path, "enhanced_recipe", seed, top1=50.0 + seed)
    monkeypatch.setenv("ROADMAP_RUNS", str(tmp_path))
    notebook = executed(ROOT)
    assert "4 finished runs in" in text_of(notebook)
    assert "EXAMPLE" not in text_of(notebook)
    assert "Study roadmap" in text_of(notebook)
    assert len(pictures_of(notebook)) == 3  # the chart, the gains, the trade-off
    tables = [
        o.data["text/plain"]
        for cell in notebook.cells
        for o in cell.get("outputs", [])
        if o.output_type == "execute_result"
    ]
    assert "gain_low" in tables[0]


def test_runs_without_costs_and_of_two_regimes_are_shown_as_far_as_they_go(tmp_path, monkeypatch):
    costs = dict.fromkeys(("gmacs", "params_m", "train_images_per_s", "gpu_hours", "peak_memory_gb"))
    for regime in ("nano", "mini"):
        for step in ("resnet", "enhanced_recipe"):
            write_run(tmp_path, step, regime=regime, **costs)
    monkeypatch.setenv("ROADMAP_RUNS", str(tmp_path))
    notebook = executed(ROOT)
    assert len(pictures_of(notebook)) == 4  # charts and gains
    (table,) = [o.data["text/plain"] for cell in notebook.cells for o in cell.get("outputs", []) if "data" in o and
                o.output_type == "execute_result"]  # fmt: skip
    assert "regime" in table


def test_runs_that_do_not_count_are_named_before_the_example(tmp_path, monkeypatch):
    unfinished(tmp_path, "gelu")
    monkeypatch.setenv("ROADMAP_RUNS", str(tmp_path))
    notebook = executed(ROOT)
    text = text_of(notebook)
    assert "gelu/seed0: epoch 7 of 20, stopped" in text and "EXAMPLE: 102 measured runs" in text
    assert len(pictures_of(notebook)) == 6  # of both recorded studies
    assert any("separate d.s. conv" in str(out) for cell in notebook.cells for out in cell.get("outputs", []))


def test_without_runs_it_shows_the_example_and_says_so(tmp_path, monkeypatch):
    notebooks = tmp_path / "notebooks"
    write_run(tmp_path, "gelu", study="demo")
    pack(str(tmp_path / "demo"), notebooks / "results" / "demo.zip")
    shutil.copy(NOTEBOOK, notebooks)
    monkeypatch.delenv("ROADMAP_RUNS", raising=False)
    notebook = executed(notebooks)
    assert "EXAMPLE: 1 measured runs" in text_of(notebook)
    assert len(pictures_of(notebook)) == 1  # of one row there is no gain and no trade-off
