"""The page: one file that needs no network and lets no name do anything; in a real browser where there is one."""

import base64
import hashlib
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest

from roadmap.report import collect
from roadmap.report.__main__ import main
from roadmap.report.write.page import command
from tests.fabricate import groups_of, unfinished, write_roadmap, write_run

HOSTILE = {
    "own1": "<script>window.hacked = 1</script>",
    "own2": '"><img src=x onerror="window.hacked = 1">',
    "own3": "{{ 7 * 7 }}{% raw %}",
    "own4": "\u202egnp.exe]]>--><svg onload=window.hacked=1>",
    "own5": "x" * 5_000,
    "own6": "$\\frac{1$ =cmd()",
}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Write a report of a roadmap with three seeds, some hostile names, and runs that do not count."""
    folder, where = tmp_path_factory.mktemp("page"), {"regime": "tiny", "data": "imagenet"}
    write_roadmap(folder / "runs", seeds=3, epochs=2)
    for step, label in HOSTILE.items():
        extra = f"model:\n  note: {label[:60]!r}\n"
        write_run(folder / "runs", step, parent="gelu", label=label, top1=70.0, config=extra, **where)
    unfinished(folder / "runs", "gelu", 7, **where)
    write_run(folder / "runs", "gelu", 8, hardware="</li><script>window.hacked = 1</script>", **where)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("roadmap.report.__main__.FORMATS", ("svg",))  # what the page shows
        assert main([str(folder / "runs"), "--out", str(folder / "out")]) == 0
    return folder / "out" / "index.html"


class Page(HTMLParser):
    """Every element of the page with its attributes, and the text of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def page(report):
    return Page(report.read_text(encoding="utf-8"))


def test_it_refers_to_nothing_outside_itself(page):
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert name not in {"src", "srcset", "action"}, (tag, name, value)
            if name in {"href", "xlink:href"}:
                assert value.startswith("#") or value == "data:,", (tag, value)
            assert "url(" not in (value or "") or "url(#" in value


def test_hostile_names_are_text_and_the_policy_lets_only_our_script_run(report, page):
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert "img" not in {tag for tag, _ in page.elements}
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    text = report.read_text(encoding="utf-8")
    script = text[text.index("<script>") + len("<script>") : text.index("</script>")]
    (policy,) = [a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert f"script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    assert "default-src 'none'" in policy
    assert "{{ 7 * 7 }}{% raw %}" in " ".join(page.texts)
    assert not re.search("[\u202a-\u202e\u2066-\u2069]", text)


def test_ids_are_unique_and_every_reference_finds_its_own(page):
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        for value in filter(None, attributes.values()):
            is_link = value.startswith("#f") and "-" in value
            assert set([value[1:]] if is_link else re.findall(r"url\(#([^)]+)\)", value)) <= set(ids)


def test_warnings_come_first_and_every_row_has_command_config_difference_and_commit(page):
    said = "\n".join(page.texts)
    assert said.index("Suspect, left out of every number (1)") < said.index("Findings") < said.index("Figures")
    assert "epoch 7 of 20" in said
    assert "python run.py +step=gelu regime=tiny data=imagenet study=roadmap seed=0" in said
    assert "Differs from gelu in:" in said
    assert "model.note:  -> " in said
    assert "recipe.epochs: 2" in said
    assert "c0ffee" in said


@pytest.mark.parametrize(
    ("about", "words"),
    [
        (
            {"cell": "gelu,model.kernel_size=9,recipe.lr=0.001"},
            "scale=demo regime=nano data=digits model.kernel_size=9 recipe.lr=0.001",
        ),
        ({"cell": "gelu+without_x", "variant": "without_x"}, "+step=gelu +variant=without_x scale=demo"),
        ({"cell": "gelu+without_x,a.b=[1,2],c=3", "variant": "without_x"}, "data=digits 'a.b=[1,2]' c=3 study"),
        ({"cell": "gelu,0123456789ab"}, "seed=0  # and the overrides that its name stands for: see the config"),
    ],
)
def test_the_command_of_a_run_is_made_of_its_record(tmp_path, about, words):
    write_run(tmp_path, "gelu", config="regime:\n  scale: demo\n", **about)
    (run,) = collect([tmp_path]).runs
    assert words in command(run)


def test_sort_keys_are_the_numbers_of_the_csv(report, page):
    groups = groups_of(report.parent.parent / "runs")
    keys = [float(a["data-v"]) for tag, a in page.elements if tag == "td" and "data-v" in a]
    assert {row.top1 for row in groups[0].rows} <= set(keys)


# --- in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if not all(programs):
        pytest.skip("needs chromium and chromedriver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for flag in (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", "window-size=1280,1000",
        f"user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(programs[1]))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, report):
    browser.set_window_size(1280, 1000)
    browser.get_log("browser")
    browser.get(report.as_uri())
    return browser


TOO_WIDE = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


def find(driver, selector):
    return driver.find_element("css selector", selector)


def prefer(driver, scheme):
    """Let the reader's system be `light` or `dark`."""
    wish = {"name": "prefers-color-scheme", "value": scheme}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [wish]})


def column(driver, number: int) -> list[str]:
    return driver.execute_script(
        f"return [...document.querySelectorAll('table')[0].tBodies[0].rows].map(r => r.cells[{number}].textContent)"
    )


@pytest.mark.browser
def test_it_opens_without_a_word_on_the_console_and_fetches_nothing(opened):
    assert opened.get_log("browser") == []
    assert opened.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert opened.title == "From ResNet to ConvNeXt: the report"


@pytest.mark.browser
def test_a_hostile_step_name_does_nothing(opened):
    assert opened.execute_script("return window.hacked") is None
    assert opened.execute_script("return document.scripts.length") == 1
    assert "<script>window.hacked = 1</script>" in find(opened, "#tables").text


@pytest.mark.browser
def test_a_click_sorts_by_number_both_ways_and_the_keyboard_too(opened):
    from selenium.webdriver.common.keys import Keys

    names = [heading.text.rstrip(" ↕") for heading in opened.find_elements("css selector", "table:first-of-type th")]
    number = names.index("top-1 (%)")
    button = opened.find_elements("css selector", "table:first-of-type th button")[number]
    button.click()
    tops = [float(text.split()[0]) for text in column(opened, number)]
    assert tops == sorted(tops)
    assert len(set(tops)) > 5
    button.send_keys(Keys.ENTER)
    assert [float(text.split()[0]) for text in column(opened, number)] == sorted(tops, reverse=True)
    assert button.find_element("xpath", "..").get_attribute("aria-sort") == "descending"
    paper = names.index("paper top-1")
    for _ in range(2):  # what is empty stays at the end
        opened.find_elements("css selector", "table:first-of-type th button")[paper].click()
        texts = column(opened, paper)
        empty = len(HOSTILE) + 1  # Swin's number is of another recipe
        assert texts[-empty:] == [""] * empty
        assert all(texts[:-empty])


@pytest.mark.browser
def test_the_pointer_and_the_arrow_keys_show_values(opened):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    figure = find(opened, "figure[data-name=gains]")
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", figure)
    mark = figure.find_element(
        "xpath", ".//*[local-name()='g'][*[local-name()='title'][starts-with(., 'stage ratio')]]//*[local-name()='use']"
    )
    ActionChains(opened).move_to_element(mark).perform()
    told = figure.find_element("css selector", "output")
    assert told.text.startswith("stage ratio: gain +0.")
    roadmap = find(opened, "figure[data-name=roadmap]")
    roadmap.find_element("css selector", "div").send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert "the paper's top-1 76.13 %" in roadmap.find_element("css selector", "output").text


@pytest.mark.browser
def test_a_row_opens_to_its_classes_which_sort_and_to_its_matrix_on_a_phone_too(browser, tmp_path, monkeypatch):
    monkeypatch.setattr("roadmap.report.__main__.FORMATS", ("svg",))
    rng, labels = np.random.default_rng(0), np.arange(600) % 12
    for step in ("resnet", "enhanced_recipe"):
        for seed in range(2):
            predicted = np.where(rng.random(600) < 0.7, labels, rng.integers(0, 12, 600))
            write_run(tmp_path / "runs", step, seed, by_image=(predicted, labels), num_classes=12)
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    browser.set_window_size(500, 800)
    browser.get_log("browser")
    browser.get((tmp_path / "out" / "index.html").as_uri())
    row = browser.find_elements("css selector", ".each > details")[1]
    opening = "for (const d of [arguments[0], ...arguments[0].querySelectorAll('details')]) d.open = true"
    browser.execute_script(opening, row)
    matrix = row.find_element("css selector", ".matrix")
    assert matrix.is_displayed()
    counts = "[...arguments[0].tBodies[0].rows].map(r => [...r.cells].slice(1).map(c => Number(c.textContent)))"
    rows = browser.execute_script(f"return {counts}", matrix)
    assert [sum(row) for row in rows] == [50] * 12
    table = row.find_elements("css selector", "table")[1]
    change = table.find_elements("css selector", "th button")[4]
    browser.execute_script("arguments[0].click()", change)
    numbers = "[...arguments[0].tBodies[0].rows].map(r => Number(r.cells[4].dataset.v))"
    found = browser.execute_script(f"return {numbers}", table)
    assert (found, len(found)) == (sorted(found), 12)
    assert browser.get_log("browser") == []
    assert browser.execute_script(f"return {TOO_WIDE}") <= 0


@pytest.mark.browser
def test_on_a_phone_nothing_is_wider_than_the_screen(opened):
    opened.set_window_size(500, 800)  # headless chromium makes no narrower window
    assert opened.execute_script(f"return {TOO_WIDE}") <= 0
    assert not find(opened, "figure[data-name=roadmap]").is_displayed()
    assert find(opened, "figure[data-name=roadmap-column]").is_displayed()


@pytest.mark.browser
def test_a_phone_shows_a_wide_chart_that_has_no_narrow_one(browser, tmp_path, monkeypatch):
    monkeypatch.setattr("roadmap.report.__main__.FORMATS", ("svg",))
    for holdout, factor in ((0.1, 0.5), (0.1, 1), (0.0, 1)):
        rate = {"config": f"recipe:\n  lr: {0.1 * factor}\n", "split": "holdout" if holdout else "val"}
        words = [f"data.holdout={holdout}"] * bool(holdout) + [f"recipe.lr={0.1 * factor:g}"] * (factor != 1)
        write_run(tmp_path / "runs", cell=",".join(["resnet", *words]), **rate)
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    browser.set_window_size(500, 800)
    browser.get((tmp_path / "out" / "index.html").as_uri())
    shown = {name: find(browser, f"figure[data-name={name}]").is_displayed() for name in ("roadmap", "roadmap-rates")}
    assert shown == {"roadmap": False, "roadmap-rates": True}


@pytest.mark.browser
def test_it_is_light_or_dark_as_the_reader_wishes(opened):
    seen = {}
    for scheme in ("light", "dark"):
        prefer(opened, scheme)
        numbers = "[s.backgroundColor, s.color].map(c => c.match(/\\d+/g).map(Number))"
        back, ink = opened.execute_script(f"const s = getComputedStyle(document.body); return {numbers}")
        seen[scheme] = (sum(back), sum(ink))
    assert seen["light"][0] - seen["light"][1] > 500
    assert seen["dark"][1] - seen["dark"][0] > 500


@pytest.mark.browser
def test_it_prints(opened):
    pdf = base64.b64decode(opened.print_page())
    assert pdf.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) >= 3


@pytest.mark.browser
def test_the_charts_are_dark_where_the_page_is(opened):
    back = "getComputedStyle(document.querySelector('figure[data-name=roadmap] svg path')).fill"
    seen = []
    for scheme in ("light", "dark"):
        prefer(opened, scheme)
        seen.append(sum(map(int, re.findall(r"\d+", opened.execute_script(f"return {back}")))))
    assert seen[0] > 700 > 200 > seen[1]


@pytest.mark.browser
def test_a_table_wider_than_its_place_says_that_it_scrolls(opened):
    wide = "[...document.querySelectorAll('#tables > section > .scroll')].map(s => s.scrollWidth > s.clientWidth)"
    said = "[...document.querySelectorAll('#tables > section > .scroll')].map(s => s.classList.contains('more'))"
    for size in (1280, 500):
        opened.set_window_size(size, 1000)
        later = f"requestAnimationFrame(() => setTimeout(() => done([{wide}, {said}]), 0))"
        both = opened.execute_async_script(f"const done = arguments[0]; {later}")
        assert both == [opened.execute_script(f"return {wide}")] * 2
    assert any(opened.execute_script(f"return {wide}"))
