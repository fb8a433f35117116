"""The measured example that comes with the project is whole."""

from pathlib import Path
from zipfile import ZipFile

import pytest

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
