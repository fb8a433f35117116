"""`make compare`: two runs, or two rows over their seeds, side by side, by the report's own tests."""

import json
import shutil

import numpy as np
import pytest
import yaml
from scipy import stats

from roadmap.files import read_json, write_json
from roadmap.report.analyse.comparison import find_side
from roadmap.report.compare import main
from roadmap.runs import schema
from roadmap.runs.pack import pack
from roadmap.steps import compose
from roadmap.steps.table import diff
from tests.fabricate import unfinished, write_run

RIGHT = np.random.default_rng(0).random((6, 200)) < np.array([0.6, 0.62, 0.58, 0.8, 0.78, 0.81])[:, None]
FILES = {"compare.png", "compare.svg", "compare.txt", "compare.json"}


def real_config(run, step, **recipe):
    """Put the whole config of a step in the place of a made-up one."""
    values = compose(step, "nano").values()
    values["recipe"] |= recipe
    values |= {"cell": step, "step": step, "study": "roadmap", "seed": int(run.name[4:])}
    (run / schema.CONFIG).write_text(yaml.safe_dump(values))


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Two rows of three seeds, a stopped run in one of them, and a variant with one seed of another number."""
    runs = tmp_path_factory.mktemp("shared")
    for seed in range(3):
        for at, step in enumerate(("increase_width", "inverted_bottleneck")):
            run = write_run(
                runs, step, seed, correct=RIGHT[3 * at + seed], hardware=f"GPU {at}", time_s=3600.0 * (at + 1),
                versions={"torch": f"2.{13 + at}.0", "numpy": "2.4.6"},
            )  # fmt: skip
            real_config(run, step, lr=0.002 if at else 0.001)
    unfinished(runs, "inverted_bottleneck", 3)
    write_run(runs, "gelu", 7, correct=RIGHT[5], variant="without_mixup", cell="gelu+without_mixup")
    return runs / "roadmap"


@pytest.fixture
def study(shared, tmp_path):
    """Return a copy of that study."""
    return shutil.copytree(shared, tmp_path / "runs" / "roadmap")


def compared(*words, code=0, capsys):
    assert main([*map(str, words)]) == code
    return capsys.readouterr()


def test_two_rows_are_compared_over_their_seeds_and_images(study, capsys):
    place = study / "nano-digits"
    words = (place / "increase_width", place / "inverted_bottleneck")
    found = json.loads(compared(*words, "--json", capsys=capsys).out)
    a, b = 100 * RIGHT[:3].mean(axis=1), 100 * RIGHT[3:].mean(axis=1)
    welch = stats.ttest_ind(b, a, equal_var=False)
    gain = found["b_over_a"]
    assert gain["gain"] == pytest.approx(b.mean() - a.mean())
    assert gain["p"] == pytest.approx(welch.pvalue)
    assert gain["over_seeds"]["low"] == pytest.approx(welch.confidence_interval().low)
    only_b, only_a = int((RIGHT[3] & ~RIGHT[0]).sum()), int((RIGHT[0] & ~RIGHT[3]).sum())
    assert (gain["only_this"], gain["only_parent"]) == (only_b, only_a)
    chi = (only_b - only_a) ** 2 / (only_b + only_a)
    assert gain["mcnemar_p"] == pytest.approx(stats.chi2.sf(chi, 1))
    assert found["paired_seeds"] == [0, 0]
    assert [side["hours"] for side in (found["a"], found["b"])] == [1, 2]
    assert "seed3: epoch 7 of 20, stopped" in found["b"]["left_out"][0]
    assert {change["key" if "key" in change else "name"]: (change["a"], change["b"]) for change in found["keys"]} == {
        "step": ("increase_width", "inverted_bottleneck"),
        "model.inverted": ("false", "true"),
        "recipe.lr": ("0.001", "0.002"),
    }
    assert {change["affects"] for change in found["keys"]} == {"result"}
    assert found["provenance"]["hardware"] == ["GPU 0", "GPU 1"]


def test_layers_are_those_of_steps_diff(study, capsys):
    words = ("increase_width", "inverted_bottleneck", "--within", study, "--json")
    found = json.loads(compared(*words, capsys=capsys).out)
    printed = diff(compose("increase_width", "nano"), compose("inverted_bottleneck", "nano")).splitlines()
    first = next(n for n, line in enumerate(printed) if line.startswith("parameters of the net"))
    assert found["layers"] == printed[first : first + len(found["layers"])]
    assert printed[first + len(found["layers"])].startswith("GMACs")


def test_the_page_and_the_files(study, tmp_path, capsys):
    out = tmp_path / "out"
    page = compared("increase_width", "inverted_bottleneck", "--within", study, "--out", out, capsys=capsys).out
    assert {path.name for path in out.iterdir()} == FILES
    assert (out / "compare.txt").read_text() == page
    assert (out / "compare.png").read_bytes()[1:4] == b"PNG"
    assert (out / "compare.svg").read_text().count("<title>B, seed") == 3
    for line in (
        "A: increase_width, 3 seeds (0, 1, 2): ",
        "Keys that differ: may change the result",
        "  recipe.lr       0.001           ->  0.002",
        "  versions of A: torch 2.13.0",
        "  versions of B: torch 2.14.0",
        "over images (seed 0): only A has ",
    ):
        assert line in page, line
    (hours,) = [line.split() for line in page.splitlines() if line.startswith("  time (h)")]
    assert hours == ["time", "(h)", "1.00", "2.00", "2"]
    before = (out / "compare.svg").read_bytes()
    compared("increase_width", "inverted_bottleneck", "--within", study, "--out", out, capsys=capsys)
    assert (out / "compare.svg").read_bytes() == before


def test_an_archive_says_the_same_as_the_folder(study, tmp_path, capsys):
    pack(str(study), tmp_path / "study.zip")
    inside = tmp_path / "study.zip" / "roadmap" / "nano-digits"
    sides = [study / "nano-digits" / "increase_width", inside / "increase_width"]
    one, other = (
        json.loads(compared(side, inside / "inverted_bottleneck" / "seed0", "--json", capsys=capsys).out)
        for side in sides
    )
    assert one["b_over_a"] == other["b_over_a"]
    assert one["layers"] == other["layers"]
    assert one["b"]["seeds"] == [0]
    assert one["b_over_a"]["over_seeds"] is None


def test_runs_without_a_seed_in_common_are_paired_on_their_images(study, capsys):
    words = ("increase_width/seed1", "gelu+without_mixup", "--within", study, "--json")
    found = json.loads(compared(*words, capsys=capsys).out)
    assert found["paired_seeds"] == [1, 7]
    assert found["b_over_a"]["only_this"] == int((RIGHT[5] & ~RIGHT[1]).sum())


def test_a_run_beside_itself_differs_in_nothing(study, capsys):
    page = compared("increase_width/seed1", "increase_width/seed1", "--within", study, capsys=capsys).out
    assert "Keys that differ: none" in page
    assert "the same net" in page
    assert "only A has 0 right, only B 0" in page


def test_other_images_are_not_paired_and_a_key_that_nothing_read_is_none(study, capsys):
    run = study / "nano-digits" / "increase_width" / "seed0"
    write_json(run / schema.SUMMARY, read_json(run / schema.SUMMARY) | {"data_fingerprint": "others"})
    real_config(run, "increase_width", lr=0.001, schedule="step")
    page = compared("increase_width/seed0", "increase_width/seed1", "--within", study, capsys=capsys).out
    assert "over images: unknown" in page
    assert "images of A: others" in page
    assert "recipe.step_epochs  30        ->  not read" in page
    assert "recipe.momentum" not in page
    same_seed = ("increase_width/seed0", "inverted_bottleneck/seed0", "--within", study)
    assert "over images: unknown" in compared(*same_seed, capsys=capsys).out
    for seed in (10, 9):
        write_run(study.parent, "kernel_7", seed, correct=RIGHT[5][:100])
    fewer = ("kernel_7", "inverted_bottleneck/seed0", "--within", study)
    assert "over images: unknown" in compared(*fewer, capsys=capsys).out
    assert find_side("kernel_7", str(study)).cell.seeds == (9, 10)


def test_a_config_that_builds_no_net_costs_the_layers_alone(study, capsys):
    run = study / "nano-digits" / "increase_width" / "seed0"
    config = yaml.safe_load((run / schema.CONFIG).read_text())
    config["model"]["kernel_size"] = 4
    (run / schema.CONFIG).write_text(yaml.safe_dump(config))
    page = compared("increase_width/seed0", "increase_width/seed1", "--within", study, capsys=capsys).out
    assert "not known: model.kernel_size=4" in page


def test_wrong_commands(study, tmp_path, capsys):
    place = study / "nano-digits"
    shutil.copytree(place / "increase_width" / "seed0", tmp_path / "broken" / "seed0")
    (tmp_path / "broken" / "seed0" / schema.STATUS).write_text("[")
    (tmp_path / "bad.zip").write_bytes(b"PK")
    good = place / "increase_width"
    for side, code, error in [
        ("increase_widht", 64, "did you mean increase_width?"),
        (place / "gelu", 64, "did you mean gelu+without_mixup?"),
        (study, 64, "contains runs of 3 cells, and each side must be one"),
        ("", 64, "a side is empty"),
        (place / "inverted_bottleneck" / "seed3", 65, "no finished, undamaged run"),
        (tmp_path / "broken", 65, "status.json: not JSON"),
        (tmp_path / "bad.zip", 65, "is damaged, or not an archive of runs"),
    ]:
        words = (good, side, "--within", study, "--out", tmp_path / "out")
        assert error in compared(*words, code=code, capsys=capsys).err, side
    for folder, error in (
        (tmp_path / "runs" / "demo", f"gelu: no such run or folder; {tmp_path}/runs/demo: no such folder; "),
        (tmp_path / "empty", f"gelu: no such run or folder, and no run in {tmp_path}/empty"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        assert error in compared("gelu", "kernel_7", "--within", folder, code=64, capsys=capsys).err
    told = compared("no", "run", "--out", tmp_path / "bad.zip", code=74, capsys=capsys).err
    assert "bad.zip is no folder; --out takes a folder" in told
    assert "--out '': is empty" in compared(good, good, "--out", "", code=64, capsys=capsys).err
    pack(str(study), tmp_path / "study.zip")
    wrong = tmp_path / "study.zip" / "roadmap" / "nano-digits" / "gelu"
    assert "did you mean gelu+without_mixup?" in compared(good, wrong, code=64, capsys=capsys).err
    assert not (tmp_path / "out").exists()
