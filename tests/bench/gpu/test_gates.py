"""The gates of `make gpu`, and the document and table that they are written into."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from nuwaxl.bench.gpu import report
from nuwaxl.bench.gpu.gates import Gate, gates

PIECES: dict[str, Any] = {
    "tests": {"figures": {"passed": 9, "failed": 0, "skipped": 1, "exit_status": 0}},
    "kernels": {
        "rows": [
            {"kernel": "attention", "c": 320, "b": 8, "of_copy": 0.9, "of_copy_alike": 1.0, "times_faster": 1.5}
            | {"of_roof": 0.9},
            {"kernel": "conv + injection", "c": 320, "b": 8, "of_copy": 0.7, "of_copy_alike": 0.8, "times_faster": 3.0}
            | {"of_roof": 0.85},
            {"kernel": "sampler update"},
        ],
        "figures": {"matmul_tflop_s": 780.0},
    },
    "ours-torch-cuda-0-eager-256": {
        "figures": {"devices": "a", "wall_s": 60.0, "tflop_s": 400.0, "device_name": "NVIDIA H200"}
    },
    "ours-torch-cuda-0-256": {
        "figures": {
            "devices": "b",
            "precision": "bfloat16",
            "wall_s": 48.0,
            "tflop_s": 494.7,
            "device_name": "NVIDIA H200",
        }
    },
    "compile-max-autotune-256": {"figures": {"mode": "max-autotune", "total_s": 60.0, "decode_ms": 9.0}},
    "compile-reduce-overhead-256": {"figures": {"mode": "reduce-overhead", "total_s": 55.0}},  # stopped before decoding
}


def gate_of_a_render(**figures: float) -> Gate:
    """Of the opponent's, ours being 48 s and its parts 60 s together."""
    theirs = {"mode": "max-autotune", "total_s": 60.0, "decode_ms": 9.0, **figures}
    pieces = {**PIECES, "compile-max-autotune-256": {"figures": theirs}}
    return next(gate for gate in gates(pieces, [256]) if gate.name.endswith("max-autotune"))


def test_every_gate_has_its_figure_and_says_by_how_much_it_is_missed() -> None:
    by_name = {gate.name: gate for gate in gates(PIECES, [256, 128])}
    assert by_name["GPU tests that fail"].passed
    assert by_name["attention, c 320, b 8: of copy bandwidth"].passed
    sdpa = by_name["attention, c 320, b 8: times SDPA"]
    assert (sdpa.passed, sdpa.missed_by) == (False, pytest.approx(0.25))
    # The convolution by the issue's plain gate and by its own bound.
    assert by_name["conv + injection, c 320, b 8: of copy bandwidth"].missed_by == pytest.approx(0.125)
    assert by_name["conv + injection, c 320, b 8: of the roofline"].note == "bound by tensor cores"
    wall = by_name["256 px: 1024 frames"]
    assert (wall.found, wall.limit, wall.passed, wall.note) == (48.0, 51.0, True, "on b, bfloat16")
    faster = by_name["256 px: times torch.compile, max-autotune"]
    assert (faster.found, faster.how, faster.passed) == (1.25, "extrapolated", False)
    assert by_name["256 px: times torch.compile, reduce-overhead"].passed is None
    assert by_name["256 px: step MFU"].found == pytest.approx(0.5)
    # Nothing was measured at 128: said, and neither passed nor missed.
    unmeasured = ("1024 frames", "step MFU", "times torch.compile, reduce-overhead")
    assert [by_name[f"128 px: {name}"].passed for name in unmeasured] == [None] * 3


def test_a_render_of_the_opponents_counts_before_what_was_added_up() -> None:
    gate = gate_of_a_render(wall_s=72.0, wall_compiled=0, filled_wall_s=80.0)
    assert (gate.found, gate.how, gate.passed) == (1.5, "measured", True)
    assert gate.note == "72.0 s; added up in its favour 60.0 s; rendered in batches filled up 80.0 s"


def test_a_render_in_batches_that_are_filled_up_passes_no_gate() -> None:
    gate = gate_of_a_render(filled_wall_s=80.0)
    assert (gate.found, gate.how, gate.passed) == (1.25, "extrapolated", False)
    assert gate.note == "60.0 s; rendered in batches filled up 80.0 s"


def test_a_render_within_which_torch_compiled_passes_no_gate() -> None:
    gate = gate_of_a_render(wall_s=72.0, wall_compiled=2)
    assert (gate.found, gate.how, gate.passed) == (1.25, "extrapolated", False)
    assert gate.note == "60.0 s; rendered 72.0 s, in which it compiled"


def test_the_limits_are_the_issues() -> None:
    pieces = {**PIECES, "parity": {"figures": {"step_error": 1.0, "plain_step_error": 1.0}}}
    limits = {gate.name: (gate.limit, gate.at_most) for gate in gates(pieces, [256, 128])}
    assert limits == {
        "GPU tests that fail": (0.0, True),
        "attention, c 320, b 8: of copy bandwidth": (0.8, False),
        "attention, c 320, b 8: times SDPA": (2.0, False),
        "conv + injection, c 320, b 8: of copy bandwidth": (0.8, False),
        "conv + injection, c 320, b 8: of the roofline": (0.8, False),
        "parity, step: error over the plain network's": (1.25, True),
        "parity, frames: error over the plain network's": (1.25, True),
        "256 px: 1024 frames": (51.0, True),
        "128 px: 1024 frames": (26.0, True),
        **{
            f"{size} px: {name}": limit
            for size in (256, 128)
            for name, limit in (
                ("times torch.compile, reduce-overhead", (1.3, False)),
                ("times torch.compile, max-autotune", (1.3, False)),
                ("step MFU", (0.4, False)),
            )
        },
    }


def test_a_piece_that_was_stopped_while_it_opened_is_no_render(tmp_path: Path) -> None:
    stopped = {"state": "stopped", "seconds": 87.0, "figures": {"devices": "cuda:0", "open_s": 40.0}}
    pieces = {"ours-cuda-0-128": stopped}
    found = gates(pieces, [128])
    assert {gate.found for gate in found} == {None}
    document = {"schema": report.SCHEMA, "pieces": pieces, "gates": [gate.to_json() for gate in found]}
    report.write(tmp_path, document)
    assert "- open_s: 40" in (tmp_path / report.TABLE_FILE).read_text()


def test_sizes_that_were_measured_before_keep_their_gates() -> None:
    names = [gate.name for gate in gates(PIECES, [128])]
    assert "256 px: 1024 frames" in names
    assert len(names) == len(set(names))


@pytest.mark.parametrize("figures", [(0, 0, 147, 0), (0, 0, 0, 5)])
def test_gpu_tests_of_which_none_passed_say_nothing(figures: tuple[int, ...]) -> None:
    counts = dict(zip(("passed", "failed", "skipped", "exit_status"), figures, strict=True))
    assert gates({"tests": {"figures": counts}}, [])[0].passed is None


def test_a_missed_limit_of_zero_has_no_share(tmp_path: Path) -> None:
    failed = {"tests": {"figures": {"passed": 1, "failed": 2, "skipped": 0, "exit_status": 1}}}
    gate = gates(failed, [])[0].to_json()
    assert (gate["found"], gate["passed"], gate["missed_by"]) == (2, False, None)


def test_the_document_and_the_table_are_written_and_added_to(tmp_path: Path) -> None:
    document = report.read(tmp_path)
    assert document == {"schema": "nuwaxl-gpu/1", "pieces": {}}
    document["pieces"] = {name: {"state": "done", "seconds": 1.0, **piece} for name, piece in PIECES.items()}
    document["gates"] = [gate.to_json() for gate in gates(PIECES, [256])]
    report.write(tmp_path, document)
    assert report.read(tmp_path) == document
    lines = (tmp_path / report.TABLE_FILE).read_text().splitlines()
    assert "| 256 px: times torch.compile, max-autotune | 1.25 x | at least 1.3 x | MISS by 4% | " in "\n".join(lines)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu.json", "gpu.md"]
