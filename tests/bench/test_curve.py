"""The picture of the reduction over the devices."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from nuwaxl.bench.curve import main

SVG = "{http://www.w3.org/2000/svg}"


def test_every_point_of_every_document_is_drawn_where_it_belongs(tmp_path: Path) -> None:
    documents = []
    for name, reductions in (("a & b", [-0.1, 0.5, 0.9]), ("c", [0.2, 0.6, 1.0])):
        points = [{"devices": 4**n, "reduction": share} for n, share in enumerate(reductions)]
        (tmp_path / f"{name}.json").write_text(json.dumps({"simulate": points}))
        documents.append(f"{name}={tmp_path / name}.json")
    assert main([str(tmp_path / "out.svg"), *documents]) == 0
    tree = ET.parse(tmp_path / "out.svg")
    lines = [
        [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
        for line in tree.iter(f"{SVG}polyline")
    ]
    assert [len(line) for line in lines] == [3, 3]
    for line in lines:
        xs = [x for x, _ in line]
        assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1])  # a logarithmic axis
    height = lines[0][0][1] - lines[1][2][1]  # from 0 (a negative share lies there) to 100 %
    assert lines[0][0][1] - lines[0][1][1] == pytest.approx(0.5 * height, abs=0.2)
    texts = {text.text for text in tree.iter(f"{SVG}text")}
    assert {"a & b", "c", "1", "16", "the paper: 94.26%"} <= texts


def test_a_document_without_a_comparison_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.json").write_text('{"simulate": [{"devices": 1}]}')
    for document in (f"a={tmp_path}/a.json", f"b={tmp_path}/absent.json", "nothing"):
        assert main([str(tmp_path / "out.svg"), document]) == 2
        assert "--compare ar" in capsys.readouterr().err
    assert not (tmp_path / "out.svg").exists()
