"""A small run as a report page, and how the tests read such a page."""

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

from nuwaxl.bench.html_report import html_report
from nuwaxl.bench.report import Result
from nuwaxl.bench.scaling import ArComparison, SimulatedPoint
from nuwaxl.engine.stats import BatchRecord, StepRecord

VOID = {"meta", "img", "br"}
BATCHES = [
    BatchRecord("diffuse", 0, [0], "cpu#0", 1.0, 3.0),
    BatchRecord("diffuse", 1, [1, 2], "cpu#1", 3.0, 6.0),
    BatchRecord("diffuse", 1, [3], "cpu#0", 3.0, 5.0),
    BatchRecord("decode", -1, [0], "cpu#0", 5.0, 9.0),
]
STEPS = [StepRecord(1, 100.0), StepRecord(1, 110.0), StepRecord(2, 150.0), StepRecord(1, 90.0)]
POINTS = [
    SimulatedPoint(1, 100.0, 90.0, 0.9, 200.0, 0.5),
    SimulatedPoint(2, 50.0, 48.0, 0.96, 200.0, 0.75),
    SimulatedPoint(1024, 4.0, 3.0, 0.75, None, None),
]
RESULT = Result(
    schema="nuwaxl-bench/1",
    frames=10,
    segments=4,
    depths=[1, 3],
    devices=["cpu#0", "cpu#1"],
    policy="eager",
    steps=2,
    guidance=2.0,
    seed=7,
    wall_s=10.0,
    frames_per_s=1.0,
    phases_s={"text": 0.5, "diffuse": 7.0, "decode": 4.0, "encode": 0.0},
    device_busy_s={"cpu#0": 8.0, "cpu#1": 3.0},
    batches=BATCHES,
    step_ms={"p50": 105.0, "p90": 138.0, "p99": 148.8},
    lower_bound_s=4.0,
    efficiency=0.4,
    schedule={"makespan_s": 9.0, "lower_bound_s": 8.0, "ratio": 1.125},
    cost_model={"batch_sizes": [1, 2], "diffusion_s": [2.0, 3.0], "decode_s": 4.0},
    peak_rss_mib=321.0,
    versions={"nuwaxl": "9.8.7", "python": "3.11"},
    bundle_sha256="ab" * 32,
)


class Page(HTMLParser):
    """The elements of a page; checks that they are nested and closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def figures(page: str) -> list[ET.Element]:
    """The pictures, each of which must be XML too."""
    return [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)]


def bars(page: str) -> list[ET.Element]:
    """The bars of the timeline."""
    return [rect for rect in figures(page)[0].iter("rect") if rect.find("title") is not None]


def whole(result: Result = RESULT, png: bytes | None = b"\x89PNG") -> str:
    """A page with every section."""
    return html_report(result, STEPS, png, ArComparison(40.0, 12, 0.75), POINTS)


def check_stands_alone(page: str) -> Page:
    """Nothing is loaded and nothing can run."""
    parsed = Page(page)
    names = {name for name, _ in parsed.elements}
    assert not names & {"script", "link", "iframe", "object", "embed", "base", "form", "a", "use", "image"}
    for _, attributes in parsed.elements:
        assert not [key for key in attributes if key.startswith("on") or key in ("href", "srcset")]
        assert (attributes.get("src") or "data:").startswith("data:image/png;base64,") or "src" not in attributes
    assert not re.search(r"https?:|url\(|@import|javascript:", page)
    policy = [attributes["content"] for _, attributes in parsed.elements if attributes.get("http-equiv")]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    return parsed
