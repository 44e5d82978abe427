"""nuwaxl-bench: what it writes and prints, exit statuses, one-line errors, and runs that are interrupted."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import pytest
from PIL import Image

from nuwaxl.bench import cli
from nuwaxl.engine import Plan
from nuwaxl.engine.bundle import Bundle
from nuwaxl.errors import RenderError

ROOT = Path(__file__).parents[2]
Bench = Callable[..., int]

KEYS: dict[str, type | tuple[type, ...]] = {
    "schema": str,
    "frames": int,
    "segments": int,
    "depths": list,
    "devices": list,
    "policy": str,
    "steps": int,
    "guidance": float,
    "seed": int,
    "wall_s": float,
    "frames_per_s": float,
    "phases_s": dict,
    "device_busy_s": dict,
    "batches": list,
    "step_ms": dict,
    "lower_bound_s": float,
    "efficiency": float,
    "schedule": dict,
    "cost_model": dict,
    "peak_rss_mib": float,
    "versions": dict,
    "bundle_sha256": str,
}


@pytest.fixture(scope="module")
def document(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The JSON of 1024 frames of the bundled story in segments of 4 frames on two workers."""
    path = tmp_path_factory.mktemp("bench") / "bench.json"
    options = ["--bundle", str(tiny_bundle), "--devices", "cpu:2", "--max-batch", "16", "--json", str(path)]
    assert cli.main(options) == 0
    return dict(json.loads(path.read_text()))


def test_the_document_has_exactly_the_keys_of_its_schema(document: dict[str, Any]) -> None:
    assert list(document) == list(KEYS)
    for key, kind in KEYS.items():
        assert isinstance(document[key], kind), key
    assert document["schema"] == "nuwaxl-bench/1"
    assert set(document["phases_s"]) == {"text", "diffuse", "decode", "encode"}
    assert set(document["step_ms"]) == {"p50", "p90", "p99"}
    assert document["devices"] == ["cpu#0", "cpu#1"] == list(document["device_busy_s"])
    for batch in document["batches"]:
        assert set(batch) == {"kind", "depth", "segments", "device", "start_s", "end_s", "jobs", "steps"}


def test_every_segment_takes_every_step_and_every_window_is_decoded_once(document: dict[str, Any]) -> None:
    plan = Plan(1024, 4)
    assert document["depths"] == plan.counts
    assert document["segments"] == len(plan)
    steps: Counter[int] = Counter()
    for batch in document["batches"]:
        assert batch["jobs"] == [0] * len(batch["segments"])
        if batch["kind"] == "diffuse":
            steps.update(dict.fromkeys(batch["segments"], batch["steps"]))
            assert batch["depth"] == min(plan.segment(item).depth for item in batch["segments"])
            assert len(set(batch["segments"])) == len(batch["segments"]) <= 16
        else:
            assert (batch["depth"], batch["steps"], len(batch["segments"])) == (-1, 0, 1)
    assert steps == dict.fromkeys(range(len(plan)), document["steps"])
    windows = [batch["segments"][0] for batch in document["batches"] if batch["kind"] == "decode"]
    assert sorted(windows) == list(range(len(windows)))


def test_the_schedule_is_compared_with_what_its_own_costs_allow(document: dict[str, Any]) -> None:
    costs, schedule, batches = document["cost_model"], document["schedule"], document["batches"]
    assert costs["batch_sizes"] == sorted({len(batch["segments"]) for batch in batches if batch["kind"] == "diffuse"})
    assert len(costs["diffusion_s"]) == len(costs["batch_sizes"])
    assert min(costs["diffusion_s"]) > 0 < costs["decode_s"]
    first, last = min(batch["start_s"] for batch in batches), max(batch["end_s"] for batch in batches)
    assert schedule["makespan_s"] == pytest.approx(last - first, abs=1e-4)
    assert schedule["ratio"] == pytest.approx(schedule["makespan_s"] / schedule["lower_bound_s"], rel=1e-3)
    assert schedule["ratio"] >= 0.95


def test_the_times_of_the_document_agree_with_each_other(document: dict[str, Any]) -> None:
    wall = document["wall_s"]
    assert document["frames_per_s"] == pytest.approx(1024 / wall, rel=1e-4)
    batches = document["batches"]
    for device, busy in document["device_busy_s"].items():
        own = sorted((b["start_s"], b["end_s"]) for b in batches if b["device"] == device)
        assert busy == pytest.approx(sum(end - start for start, end in own), abs=1e-3)
        assert 0 < busy <= wall
        assert all(end <= start for (_, end), (start, _) in pairwise(own))
    phases = document["phases_s"]
    assert phases["encode"] == 0  # no video was written
    for kind in ("diffuse", "decode"):
        spent = sum(b["end_s"] - b["start_s"] for b in batches if b["kind"] == kind)
        assert phases[kind] == pytest.approx(spent, abs=1e-3)
    assert 0 < phases["text"] <= min(batch["start_s"] for batch in batches)
    assert max(batch["end_s"] for batch in batches) <= wall
    assert 0 < document["step_ms"]["p50"] <= document["step_ms"]["p90"] <= document["step_ms"]["p99"]
    assert 0 < document["lower_bound_s"] <= wall
    assert document["efficiency"] == pytest.approx(document["lower_bound_s"] / wall, abs=1e-4)
    assert 0 < document["efficiency"] <= 1


def test_the_document_says_what_was_rendered_by_what(document: dict[str, Any], tiny_bundle: Path) -> None:
    asked = {key: document[key] for key in ("frames", "policy", "steps", "guidance", "seed")}
    assert asked == {"frames": 1024, "policy": "eager", "steps": 5, "guidance": 2.0, "seed": 7}
    assert document["bundle_sha256"] == Bundle.open(tiny_bundle).sha256
    assert set(document["versions"]) == {"nuwaxl", "python", "onnxruntime", "numpy", "av"}
    assert 20 < document["peak_rss_mib"] < 65536


def test_the_docs_define_every_key_and_no_other(document: dict[str, Any]) -> None:
    text = (ROOT / "docs" / "bench.md").read_text(encoding="utf-8")
    defined = re.findall(r"^\| `([a-z0-9_]+)` \|", text, flags=re.MULTILINE)
    assert defined == [*document, "simulate", "compare"]
    for inner in ("phases_s", "step_ms", "versions", "schedule", "cost_model"):
        for key in document[inner]:
            assert f"`{key}`" in text, key
    for key in document["batches"][0]:
        assert f"`{key}`" in text, key
    assert document["schema"] in text


def test_with_out_the_sheet_lies_beside_the_video_and_the_report_names_both(
    bench: Bench, own_story: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.video.mp4"
    assert bench("--story", own_story, "--frames", 21, "--out", out, "--policy", "level", "--steps", 3) == 0
    with av.open(str(out)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 21
    with Image.open(tmp_path / "a.video.png") as sheet:
        assert sheet.size == (12 + 8 * 204, 12 + 3 * (192 + 2 * 16 + 2 * 12))
    printed = capsys.readouterr()
    assert printed.err == ""
    said = dict(line.split(maxsplit=1) for line in printed.out.splitlines())
    assert said["frames"] == "21"
    assert said["segments"] == f"{len(Plan(21, 4))} (1 + 3 + 7), 3 steps each"
    assert re.fullmatch(r"[\d.]+ s, [\d.]+ frames/s", said["wall"])
    assert re.fullmatch(r"text [\d.]+ s, diffuse [\d.]+ s, decode [\d.]+ s, encode [\d.]+ s", said["phases"])
    assert re.fullmatch(r"[\d.]+% of the lower bound, [\d.]+ s", said["efficiency"])
    assert "policy level" in said["batches"]
    assert said["written"] == f"{out}, {tmp_path / 'a.video.png'}"
    assert sorted(path.name for path in tmp_path.glob("*video*")) == ["a.video.mp4", "a.video.png"]


def test_writing_the_video_is_measured(bench: Bench, own_story: Path, tmp_path: Path) -> None:
    story = ["--story", own_story, "--frames", 21]
    assert bench(*story, "--out", tmp_path / "o.mp4", "--json", tmp_path / "o.json") == 0
    assert json.loads((tmp_path / "o.json").read_text())["phases_s"]["encode"] > 0


def test_nothing_is_written_unless_asked_for(
    bench: Bench, own_story: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    assert bench("--story", own_story, "--frames", 5) == 0
    assert set(tmp_path.iterdir()) == before


def test_a_sheet_alone_and_a_json_file_that_exists_are_written(bench: Bench, own_story: Path, tmp_path: Path) -> None:
    target = tmp_path / "real.json"
    target.write_text("old")
    (tmp_path / "link.json").symlink_to(target)
    sheet = tmp_path / "s.png"
    options = ["--story", own_story, "--frames", 5, "--sampler", "ddim", "--seed", 3]
    assert bench(*options, "--sheet", sheet, "--json", tmp_path / "link.json") == 0
    assert json.loads(target.read_text())["seed"] == 3
    assert (tmp_path / "link.json").is_symlink()
    assert sheet.is_file()


def test_trace_and_report_are_written_and_named_and_bring_no_sheet_of_their_own(
    bench: Bench, own_story: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / "t.json", tmp_path / "r.html"]
    assert bench("--story", own_story, "--frames", 5, "--report", files[1], "--trace", files[0]) == 0
    assert sorted(tmp_path.iterdir()) == sorted([*files, own_story])
    assert capsys.readouterr().out.endswith(f"{files[0]}, {files[1]}\n")


def test_help_shows_every_option(capsys: pytest.CaptureFixture[str], bench: Bench) -> None:
    assert bench("--help") == 0
    text = capsys.readouterr().out
    options = "frames bundle devices steps guidance seed policy max-batch sampler json out sheet trace report story"
    options += " simulate-devices cost-model compare"
    for word in [*(f"--{option}" for option in options.split()), "1024", "cpu:2", "exit status"]:
        assert word in text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--frames", "0"], "--frames: expected a whole number of at least 1; found 0"),
        (["--frames", "x"], "found 'x'"),
        (["--devices", "cuda,cuda:0"], "every GPU once"),
        (["--bundle", "/absent"], "nothing there"),
        (["--story", "/absent.toml"], "expected a readable story at /absent.toml"),
        (["--steps", "101"], "from 1 to 100"),
        (["--max-batch", "0"], "--max-batch"),
        (["--max-batch", "99999999999999999999"], "max_batch: a whole number from 1 to"),
        (["--out", ""], "a name for the output file"),
        (["--json", ""], "a name for the output file"),
        (["--sampler", "euler"], "euler"),
        (["--policy", "lazy"], "lazy"),
        (["--out", "o.gif"], "ending in .mp4"),
        (["--out", "absent/o.mp4"], "existing folder absent"),
        (["--sheet", "o.jpg"], "ending in .png"),
        (["--sheet", "absent/o.png"], "existing folder absent"),
        (["--json", "absent/o.json"], "existing folder absent"),
        (["--trace", "absent/t.json"], "existing folder absent"),
        (["--trace", "."], "found a directory"),
        (["--report", "r.htm"], "ending in .html"),
        (["--report", "absent/r.html"], "existing folder absent"),
        (["--trace", "r.html", "--report", "r.html"], "r.html more than once"),
        (["--trace", "own.toml"], "own.toml more than once"),
        (["--json", "."], "found a directory"),
        (["--json", "o.json/"], "a name for the output file"),
        (["--json", "/proc/o.json"], "folder /proc that can be written"),
        (["--json", "o" * 300], "File name too long"),
        (["--sheet", "o.png", "--json", "o.png"], "o.png more than once"),
        (["--out", "o.mp4", "--json", "o.png"], "o.png more than once"),
        (["--json", "own.toml"], "own.toml more than once"),
        (["--simulate-devices", "0"], "--simulate-devices"),
        (["--simulate-devices", "1,,2"], "--simulate-devices"),
        (["--simulate-devices", "99999"], "at most 65536"),
        (["--cost-model", "own.toml"], "--simulate-devices with --cost-model"),
        (["--cost-model", "own.toml", "--simulate-devices", "2"], "batch_sizes"),
        (["--cost-model", "absent.json", "--simulate-devices", "2"], "readable cost model at absent.json"),
        (["--cost-model", "own.toml", "--simulate-devices", "2", "--json", "own.toml"], "own.toml more than once"),
        (["--cost-model", "c.json", "--simulate-devices", "2", "--out", "o.mp4"], "no --out with --cost-model"),
        (["--compare", "dof"], "--compare"),
        (["--fames", "3"], "--fames"),
    ],
)
def test_bad_input_is_one_line_and_status_2_before_any_work(
    bench: Bench,
    own_story: Path,
    options: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_work(*_: object) -> None:
        raise AssertionError("the render began")

    monkeypatch.setattr(cli, "run", no_work)
    monkeypatch.chdir(own_story.parent)
    before = set(own_story.parent.iterdir())
    assert bench("--story", own_story.name, "--frames", "5", *options) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.err.startswith("nuwaxl-bench: error: ")
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert set(own_story.parent.iterdir()) == before


def test_a_result_that_cannot_be_written_is_one_line_and_status_1(
    bench: Bench,
    own_story: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def disk_full(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:10])
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "write_bytes", disk_full)
    assert bench("--story", own_story, "--frames", 5, "--json", tmp_path / "o.json") == 1
    printed = capsys.readouterr()
    assert "No space left on device" in printed.err
    assert printed.err.count("\n") == 1
    assert not list(tmp_path.glob("*o.json*"))


def test_a_render_that_fails_is_one_line_and_status_1_and_leaves_no_file(
    bench: Bench,
    own_story: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise RenderError("the render failed on cpu#0")

    monkeypatch.setattr("nuwaxl.bench.sheet.ContactSheet.add", fail)
    outputs = ["--out", tmp_path / "o.mp4", "--json", tmp_path / "o.json"]
    assert bench("--story", own_story, "--frames", 5, *outputs) == 1
    assert capsys.readouterr().err == "nuwaxl-bench: error: the render failed on cpu#0\n"
    assert not list(tmp_path.glob("*o.*"))


@pytest.mark.parametrize(
    ("number", "status", "said"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_ctrl_c_and_sigterm_end_with_one_line_their_status_and_no_file(
    tiny_bundle: Path, own_story: Path, tmp_path: Path, number: signal.Signals, status: int, said: str
) -> None:
    outputs = ["--out", tmp_path / "o.mp4", "--json", tmp_path / "o.json"]
    arguments = ["--story", own_story, "--bundle", tiny_bundle, "--frames", "200000", "--steps", "100", *outputs]
    process = subprocess.Popen(
        [sys.executable, "-m", "nuwaxl.bench.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".o.*.part")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(number)
    printed, error = process.communicate(timeout=60)
    assert (process.returncode, printed, error) == (status, "", f"nuwaxl-bench: {said}\n")
    assert not list(tmp_path.glob("*o.*"))


def test_a_run_is_simulated_on_its_own_devices_and_others_and_compared(
    bench: Bench, own_story: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "o.json"
    options = ["--devices", "cpu:1", "--steps", 50, "--simulate-devices", "4,64", "--compare", "ar", "--json", out]
    assert bench("--story", own_story, "--frames", 200, "--report", tmp_path / "r.html", *options) == 0
    document = json.loads(out.read_text())
    points = {point["devices"]: point for point in document["simulate"]}
    assert list(points) == [1, 4, 64]
    for point in points.values():
        assert point["efficiency"] == pytest.approx(point["lower_bound_s"] / point["makespan_s"], rel=1e-3)
        assert point["reduction"] == pytest.approx(1 - point["makespan_s"] / point["ar_makespan_s"], rel=1e-2)
        assert 0 < point["efficiency"] <= 1
    assert points[1]["executed_s"] == document["schedule"]["makespan_s"]
    assert "executed_s" not in points[4]
    # The tiny bundle's steps are as short as what no cost model knows, and others use the machine;
    # test_requirements.py compares in earnest.
    assert 0.02 < points[1]["makespan_s"] / points[1]["executed_s"] < 50
    ar = document["compare"]["ar"]
    assert ar["windows"] == 1 + -(-(200 - 4) // 3)
    assert ar["reduction"] == pytest.approx(1 - document["wall_s"] / ar["wall_s"], rel=1e-3)
    printed = capsys.readouterr().out
    assert "makespan" in printed
    assert f"{ar['windows']} windows one after another" in printed
    assert "autoregressive" in (tmp_path / "r.html").read_text()


def test_with_given_costs_nothing_is_rendered(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli.Engine, "open", None)
    costs = tmp_path / "costs.json"
    costs.write_text('{"batch_sizes": [1, 4], "diffusion_s": [2.0, 4.0]}')
    options = ["--cost-model", costs, "--simulate-devices", "1,1000", "--json", tmp_path / "o.json", "--compare", "ar"]
    assert bench("--frames", 1024, *options) == 0
    document = json.loads((tmp_path / "o.json").read_text())
    plan = Plan(1024, 4)
    assert document["schema"] == "nuwaxl-bench/1"
    assert (document["frames"], document["segments"], document["depths"]) == (1024, len(plan), plan.counts)
    assert document["cost_model"] == {"batch_sizes": [1, 4], "diffusion_s": [2.0, 4.0], "decode_s": 0.0}
    one, many = document["simulate"]
    assert one["lower_bound_s"] == pytest.approx(2.0 + (len(plan) - 1) * 1.0)
    assert 1.0 >= one["efficiency"] > 0.95
    assert many["makespan_s"] == pytest.approx(2.0 * len(plan.counts))  # a chain of diffusions alone
    assert many["ar_makespan_s"] == pytest.approx(2.0 * 341)
    assert "1000" in capsys.readouterr().out


def test_what_a_program_reads_from_standard_output_is_not_mixed_with_what_people_read(tmp_path: Path) -> None:
    (tmp_path / "costs.json").write_text('{"batch_sizes": [1, 4], "diffusion_s": [2.0, 4.0]}')
    command = [sys.executable, "-m", "nuwaxl.bench.cli", "--cost-model", "costs.json", "--simulate-devices", "1"]
    result = subprocess.run([*command, "--json", "/dev/stdout"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["frames"] == 1024
    assert "segments" in result.stderr
