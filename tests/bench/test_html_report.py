"""The report page: it stands alone, and shows the run as it was."""

import base64
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest
from PIL import Image

from nuwaxl.bench.html_report import html_report
from nuwaxl.bench.scaling import SimulatedPoint
from nuwaxl.engine.stats import StepRecord
from tests.bench.page import BATCHES, POINTS, RESULT, STEPS, Page, bars, check_stands_alone, figures, whole

Bench = Callable[..., int]


def test_the_page_stands_alone_and_has_the_figures_of_the_run() -> None:
    page = check_stands_alone(whole())
    assert "10 frames in 10 s" in page.text
    for said in ("eager", "9.8.7", "40.0%", "1 + 3", "105 ms", "321 MiB", "ab" * 32, "cpu#0, cpu#1", "seed 7"):
        assert said in page.text, said
    sections = re.findall(r"<h2>(.*?)</h2>", whole())
    assert sections == [
        "Timeline",
        "Batch sizes",
        "Step latencies",
        "Phases",
        "Against the autoregressive baseline",
        "Simulated devices",
        "Contact sheet",
        "The run",
    ]


def test_sections_without_data_are_left_out() -> None:
    page = html_report(RESULT, STEPS, None)
    check_stands_alone(page)
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["Timeline", "Batch sizes", "Step latencies", "Phases", "The run"]
    assert "<img" not in page


def test_light_and_dark_are_chosen_by_the_reader_and_every_class_has_a_rule() -> None:
    css = resources.files("nuwaxl.bench").joinpath("report.css").read_text(encoding="utf-8")
    assert css in whole()
    assert "@media (prefers-color-scheme: dark)" in css
    light, dark = (set(re.findall(r"(--[\w-]+):", part)) for part in css.split("* {")[0].split("@media"))
    assert light == dark
    assert set(re.findall(r"var\((--[\w-]+)\)", css)) <= light | {"--width"}
    classes = " ".join(
        value or "" for _, attributes in Page(whole()).elements for key, value in attributes.items() if key == "class"
    )
    assert set(classes.split()) - {"name", "mark", "limit", "halo"} <= set(re.findall(r"\.([a-z]\w*)", css))


def test_whatever_text_comes_in_is_escaped() -> None:
    bad = '<script>alert("1")</script>\'&'
    batches = [replace(batch, device=bad) for batch in BATCHES]
    result = replace(
        RESULT,
        devices=[bad],
        batches=batches,
        device_busy_s={bad: 1.0},
        policy=bad,
        versions={"nuwaxl": bad, bad: bad},
        phases_s={bad: 1.0},
        step_ms={**RESULT.step_ms, bad: 1.0},
        bundle_sha256=bad,
    )
    page = whole(result)
    assert "<script" not in page
    parsed = check_stands_alone(page)
    assert parsed.text.count(bad) >= 7
    assert len(figures(page)) == len(figures(whole()))


def test_batch_sizes_and_latencies_are_counted_and_tabulated() -> None:
    page = whole()
    histogram, latencies = figures(page)[1:3]
    titles = [(rect.findtext("title"), float(rect.attrib["height"])) for rect in histogram.iter("rect")]
    assert [title for title, _ in titles] == ["3 calls with 1 segments", "1 calls with 2 segments"]
    assert titles[0][1] == pytest.approx(3 * titles[1][1], rel=0.01)
    written = {text.text for text in latencies.iter("text")}
    assert {"100 ms", "150 ms", "1", "2"} <= written
    assert len(list(latencies.iter("polygon"))) == 2
    rows = re.findall(r"<tr><td>([^<]*)</td><td>([^<]*)</td><td>([^<]*)</td>.*?<td>([^<]*)</td></tr>", page)
    assert rows[:2] == [("1", "3", "100.0", "90.0"), ("2", "1", "150.0", "75.0")]


def test_a_call_far_slower_than_all_others_does_not_flatten_the_picture_and_is_mentioned() -> None:
    steps = [StepRecord(1, 100.0 + place % 10) for place in range(1000)] + [StepRecord(1, 60_000.0)]
    page = html_report(RESULT, steps, None)
    assert "Not drawn: 1 call slower than 125 ms." in Page(page).text


def test_the_comparison_shows_wall_times_windows_and_reduction() -> None:
    page = whole()
    text = Page(page).text
    assert "12 sliding windows" in text
    assert "75.00%" in text
    own, other = (float(rect.attrib["width"]) for rect in figures(page)[4].iter("rect"))
    assert other == pytest.approx(4 * own, rel=0.01)


def test_the_simulated_curve_has_a_point_and_a_row_for_each_number_of_devices() -> None:
    page = whole()
    times, shares = figures(page)[5:7]
    marks = Counter(circle.get("class") for circle in times.iter("circle"))
    assert marks == {"mark accent": 3, "mark limit": 3, "mark other": 2}
    marks = Counter(circle.get("class") for circle in shares.iter("circle"))
    assert marks == {"mark accent": 3, "mark other": 2}
    makespans = [circle for circle in times.iter("circle") if circle.get("class") == "mark accent"]
    assert [circle.findtext("title") for circle in makespans] == [
        "1 devices: 100 s",
        "2 devices: 50 s",
        "1024 devices: 4 s",
    ]
    x = [float(circle.attrib["cx"]) for circle in makespans]
    y = [float(circle.attrib["cy"]) for circle in makespans]
    assert (x[2] - x[0]) / (x[1] - x[0]) == pytest.approx(10, rel=0.01)  # logarithmic
    assert y[0] < y[1] < y[2]  # less time is further down
    assert "<td>1,024</td><td>4 s</td><td>3 s</td><td>75.0%</td><td></td><td></td>" in page
    assert "<td>2</td><td>50 s</td><td>48 s</td><td>96.0%</td><td>3.33 min</td><td>75.00%</td>" in page


def test_what_was_also_executed_stands_beside_its_simulation() -> None:
    assert "<th>executed</th>" not in whole()
    page = whole(replace(RESULT, simulate=[{"devices": 1}, {"devices": 2, "executed_s": 51.0}]))
    assert "<th>executed</th>" in page
    assert "<td>3.33 min</td><td>75.00%</td><td>51 s</td>" in page
    assert page.count("<td>51 s</td>") == 1


@pytest.mark.parametrize("points", [POINTS[:1], POINTS[2:], [SimulatedPoint(4, 9.0, 9.0, 1.0, 3.0, -2.0)]])
def test_a_simulation_of_one_point_is_drawn_and_a_loss_too(points: list[SimulatedPoint]) -> None:
    page = html_report(RESULT, STEPS, None, None, points)
    check_stands_alone(page)
    for figure in figures(page)[-2:]:
        _, _, width, height = map(float, figure.attrib["viewBox"].split())
        for circle in figure.iter("circle"):
            assert 0 < float(circle.attrib["cx"]) < width
            assert 0 < float(circle.attrib["cy"]) < height
    assert ("autoregressive" in page) == (points[0].ar_makespan_s is not None)


def test_a_real_run_leaves_a_page_with_its_contact_sheet(bench: Bench, own_story: Path, tmp_path: Path) -> None:
    files = ["--report", tmp_path / "r.html", "--sheet", tmp_path / "s.png", "--devices", "cpu:2"]
    assert bench("--story", own_story, "--frames", 60, *files) == 0
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    parsed = check_stands_alone(page)
    image = next(attributes["src"] for name, attributes in parsed.elements if name == "img")
    assert image is not None
    png = base64.b64decode(image.removeprefix("data:image/png;base64,"), validate=True)
    assert png == (tmp_path / "s.png").read_bytes()
    with Image.open(tmp_path / "s.png") as sheet:
        assert sheet.format == "PNG"
    assert "60 frames in" in parsed.text
    assert len(bars(page)) > 20
