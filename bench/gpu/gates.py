"""The gates of docs/gpu.md, from what the pieces found; a figure that is not there is a gate that was not measured."""

from collections.abc import Mapping, Sequence
from typing import Any

from nuwaxl.bench.gpu import tests
from nuwaxl.bench.gpu.flops import peak_tflop_s
from nuwaxl.bench.gpu.kernels import GATED
from nuwaxl.bench.gpu.report import Gate, How

WALL_S = {128: 26.0, 256: 51.0}
FASTER, MFU, ROOF = 1.3, 0.4, 0.8
# Of torch.compile, both with CUDA graphs: the first takes a minute or two, the second many.
MODES = ("reduce-overhead", "max-autotune")
# Two ways of rounding to bfloat16 differ from float32 by about as much.
PARITY = 1.25


def gates(pieces: Mapping[str, Mapping[str, Any]], sizes: Sequence[int]) -> list[Gate]:
    """All of them, in the order of the table: end to end for the `sizes`, and for others that were measured before."""
    others = (int(name.rpartition("-")[2]) for name, piece in pieces.items() if piece.get("figures") and "-" in name)
    sizes = list(dict.fromkeys((*sizes, *others)))
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
        elif not figures["passed"]:
            failed = failed or None  # nor that all were skipped
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
    note = f"on {best['devices']}, {best.get('precision')}" if best else ""
    limit = WALL_S.get(size)
    found = [Gate(f"{size} px: 1024 frames", wall_s, limit, "s", at_most=True, note=note)] if limit else []

    modes = [f["mode"] for name, f in of_size.items() if name.startswith("compile-") and "mode" in f]
    found += [_times_compiled(size, mode, of_size, wall_s) for mode in dict.fromkeys((*MODES, *modes))]

    rate, device = best.get("tflop_s"), str(best.get("device_name", ""))
    peak = peak_tflop_s(device)
    measured = pieces.get("kernels", {}).get("figures", {}).get("matmul_tflop_s")
    note = f"of the data sheet's {peak:g} TFLOP/s" if peak else "of a measured matrix product"
    mfu = rate / (peak or measured) if rate and (peak or measured) else None
    found.append(Gate(f"{size} px: step MFU", mfu, MFU, "", at_most=False, note=note if mfu else ""))
    return found


def _times_compiled(size: int, mode: str, pieces: Mapping[str, Mapping[str, Any]], wall_s: float | None) -> Gate:
    """Ours against the opponent's render; where there was no time for it, or torch compiled within its clock, against
    one added up of its parts."""
    theirs = pieces.get(f"compile-{mode}-{size}", {})
    measured = "wall_s" in theirs and not theirs.get("wall_compiled")
    how: How = "measured" if measured else "extrapolated"
    their_s = theirs["wall_s"] if measured else theirs["total_s"] if "decode_ms" in theirs else None
    faster, note = None, ""
    if their_s and wall_s:
        faster, note = their_s / wall_s, f"{their_s:.1f} s"
        if measured:
            note += f"; added up in its favour {theirs['total_s']:.1f} s"
        for name, what in (("wall", "rendered"), ("filled_wall", "rendered in batches filled up")):
            if f"{name}_s" in theirs and not (measured and name == "wall"):
                note += f"; {what} {theirs[f'{name}_s']:.1f} s"
                note += ", in which it compiled" if theirs.get(f"{name}_compiled") else ""
    return Gate(f"{size} px: times torch.compile, {mode}", faster, FASTER, "x", at_most=False, how=how, note=note)
