"""The gates of bench/REQUIREMENTS.md, with the demo bundle, as a user runs it."""

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_main_job_keeps_to_its_time_and_memory(tmp_path: Path) -> None:
    command = [Path(sys.executable).with_name("nuwaxl-bench"), "--frames", "1024"]
    outputs = ["--json", tmp_path / "bench.json", "--out", tmp_path / "bench.mp4", "--simulate-devices", "2"]
    began = time.perf_counter()
    result = subprocess.run([*command, *outputs], capture_output=True, text=True, timeout=900, check=False)
    seconds = time.perf_counter() - began
    assert (result.returncode, result.stderr) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.json", "bench.mp4", "bench.png"]
    document = json.loads((tmp_path / "bench.json").read_text())
    assert document["depths"] == [1, 5, 69]
    steps: Counter[int] = Counter()
    for batch in document["batches"]:
        if batch["kind"] == "diffuse":
            steps.update(dict.fromkeys(batch["segments"], batch["steps"]))
    assert steps == dict.fromkeys(range(75), document["steps"])
    assert document["schedule"]["ratio"] <= 1.10
    executed = [point for point in document["simulate"] if "executed_s" in point]
    assert [point["devices"] for point in executed] == [len(document["devices"])]
    assert executed[0]["makespan_s"] == pytest.approx(executed[0]["executed_s"], rel=0.10)
    assert 0 < document["efficiency"] <= 1
    assert document["peak_rss_mib"] <= 1536
    assert seconds <= 120
