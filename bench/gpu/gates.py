"""The gates of docs/gpu.md, from what the pieces found; a figure that is not there is a gate that was not measured."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from nuwaxl.bench.gpu import tests
from nuwaxl.bench.gpu.flops import peak_tflop_s
from nuwaxl.bench.gpu.kernels import GATED
from nuwaxl.bench.gpu.report import Gate, How

WALL_S = {128: 26.0, 256: 51.0}
FASTER, MFU, ROOF = 1.3, 0.4, 0.8
# Two ways of rounding to bfloat16 differ from float32 by about as much.
PARITY = 1.25


def gates(pieces: Mapping[str, Mapping[str, Any]], sizes: Sequence[int]) -> list[Gate]:
    """All of them, in the order of the table."""
    return [
        *_tests(pieces),
        *_kernels(pieces),
        *_parity(pieces),
        *(gate for size in sizes for gate in _end_to_end(pieces, size)),
    ]


def _tests(pieces: Mapping[str, Mapping[str, Any]]) -> list[Gate]:
    figures = pieces.get("tests", {}).get("figures", {})
    failed, note = figures.get("failed"), ""
    if failed is not None:
        note = f"{figures['passed']} passed, {figures['skipped']} skipped"
        if figures["exit_status"] not in tests.WHOLE:
            note += ", then they ended"
            failed = failed or None  # that none of some failed says little
    return [Gate("GPU tests that fail", failed, 0.0, "", at_most=True, note=note)]


def _kernels(pieces: Mapping[str, Mapping[str, Any]]) -> list[Gate]:
    """Every gated kernel at every size; the convolution by its own bound too, which is not memory (docs/kernels.md)."""
    found = []
    for row in pieces.get("kernels", {}).get("rows", []):
        if row["kernel"] not in GATED:
            continue
        copy, faster = GATED[row["kernel"]]
        where = f"{row['kernel']}, c {row['c']}, b {row['b']}"
        if "error" in row:
            found.append(Gate(f"{where}: of copy bandwidth", None, copy, "", at_most=False, note="it failed"))
            continue
        alike = f"{row['of_copy_alike']:.0%} of a copy of as many bytes"
        found.append(Gate(f"{where}: of copy bandwidth", row["of_copy"], copy, "", at_most=False, note=alike))
        if faster is None:
            bound = "tensor cores" if row["of_roof"] > row["of_copy"] else "memory"
            found.append(
                Gate(f"{where}: of the roofline", row["of_roof"], ROOF, "", at_most=False, note=f"bound by {bound}")
            )
        else:
            found.append(Gate(f"{where}: times SDPA", row["times_faster"], faster, "x", at_most=False))
    return found or [Gate("kernels", None, 0.8, "", at_most=False)]


def _parity(pieces: Mapping[str, Mapping[str, Any]]) -> list[Gate]:
    """Our answers in bfloat16 against float32, by those of the plain network in bfloat16."""
    figures = pieces.get("parity", {}).get("figures", {})
    found = []
    for what, name in (("step", "step_error"), ("frames", "frames_error")):
        plain, ours = figures.get(f"plain_{name}"), figures.get(name)
        note = f"{ours:.3g}, plain {plain:.3g}" if plain else ""
        share = ours / plain if plain else None
        found.append(
            Gate(f"parity, {what}: error over the plain network's", share, PARITY, "", at_most=True, note=note)
        )
    return found


def _end_to_end(pieces: Mapping[str, Mapping[str, Any]], size: int) -> list[Gate]:
    of_size = {name: piece.get("figures", {}) for name, piece in pieces.items() if name.endswith(f"-{size}")}
    ours = [figures for name, figures in of_size.items() if name.startswith("ours-") and "wall_s" in figures]
    best: Mapping[str, Any] = min(ours, key=lambda figures: float(figures["wall_s"]), default={})
    wall_s = best.get("wall_s")
    note = f"on {best['devices']}" if best else ""
    limit = WALL_S.get(size)
    found = [Gate(f"{size} px: 1024 frames", wall_s, limit, "s", at_most=True, note=note)] if limit else []

    found.append(_times_compiled(size, of_size, wall_s))

    rate, device = best.get("tflop_s"), str(best.get("device_name", ""))
    peak = peak_tflop_s(device)
    measured = pieces.get("kernels", {}).get("figures", {}).get("matmul_tflop_s")
    note = f"of the data sheet's {peak:g} TFLOP/s" if peak else "of a measured matrix product"
    mfu = rate / (peak or measured) if rate and (peak or measured) else None
    found.append(Gate(f"{size} px: step MFU", mfu, MFU, "", at_most=False, note=note if mfu else ""))
    return found


def _times_compiled(size: int, pieces: Mapping[str, Mapping[str, Any]], wall_s: float | None) -> Gate:
    """Ours against the best render of the opponent's; where none was rendered, against one added up of its parts."""
    compiled = [figures for name, figures in pieces.items() if name.startswith("compile-") and "decode_ms" in figures]
    rendered = [figures for figures in compiled if "wall_s" in figures]
    key, how = ("wall_s", "measured") if rendered else ("total_s", "extrapolated")
    theirs = min(rendered or compiled, key=lambda figures: float(figures[key]), default=None)
    faster, note = None, ""
    if theirs and wall_s:
        faster = theirs[key] / wall_s
        note = f"torch.compile {theirs['mode']}: {theirs[key]:.1f} s"
        if rendered:
            least_s = min(float(figures["total_s"]) for figures in compiled)
            note += f" in batches of {theirs['wall_sizes']}; added up in its favour {least_s:.1f} s"
    return Gate(f"{size} px: times torch.compile", faster, FASTER, "x", at_most=False, how=cast(How, how), note=note)
