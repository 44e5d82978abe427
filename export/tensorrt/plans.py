"""Plans of a bundle: what to build, the builds one by one, the gate, and all of it into the bundle or nothing."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from nuwaxl.engine.bundle import Bundle, read_manifest, write_plans
from nuwaxl.engine.bundle_schema import Manifest, Plan
from nuwaxl.engine.costs import cache_folder
from nuwaxl.engine.plans import RUNTIMES, graph_sha256, named, without_stale
from nuwaxl.engine.request import MAX_BATCH
from nuwaxl.engine.runners.device.cuda import CudaDevice
from nuwaxl.engine.runners.tensorrt_module import load_tensorrt
from nuwaxl.errors import InputError
from nuwaxl.export.tensorrt.build import REFIT, Request
from nuwaxl.export.tensorrt.builder import Built, build_apart
from nuwaxl.export.tensorrt.estimate import estimate, graph_size, record
from nuwaxl.export.tensorrt.folder import plans_folder
from nuwaxl.export.tensorrt.kernels import KERNELS_FILE, Kernels, nodes_of

RTX_SM = (75, 80, 86, 89, 120, 121)
BATCHES = (1, 2, 4, 8, 16)

# Builds a plan of a graph into a file; as build_apart, or a refit of another bundle's plan.
Make = Callable[[Request, Path, Callable[[str, float], None]], Built]
# Compares the answers of the plan in a file with ONNX Runtime's, unless the GPU here has accepted it before; that GPU's
# name, or "" where none here can run it.
Gate = Callable[[Bundle, Plan, Path], str]


@dataclass(frozen=True)
class Options:
    """Which plans to build.

    Attributes:
        runtime: "tensorrt" or "tensorrt-rtx".
        version: of the runtime.
        sm: compute capabilities without the dot.
        batches: the buckets.
        refit: the plans may be refitted with other weights.
    """

    runtime: str
    version: str
    sm: tuple[int, ...]
    batches: tuple[int, ...] = BATCHES
    refit: bool = False


@dataclass(frozen=True)
class Step:
    """What a caller hears of: a plan that is being built, and `done` of it; or one that is there, or no longer is."""

    plan: Plan
    phase: str
    done: float
    finished: bool = False
    kept: bool = False  # it was there already
    dropped: bool = False  # others have taken its place, its graph or its kernels have changed, or its file had
    bytes: int = 0
    seconds: float = 0.0


def options(
    runtime: str, sm: tuple[int, ...], batches: tuple[int, ...], refit: bool, kernels_too: bool = False
) -> Options:
    """The options with the runtime's version, checked against what can be built on this machine.

    Args:
        sm: of the plans; none for TensorRT, which builds for the GPU here.
        kernels_too: a bundle is exported with kernels for `sm` as well, among which TensorRT's one GPU is to be.

    Raises:
        InputError: the runtime is not installed, an SM it does not know, or a GPU is needed and there is none.
    """
    if runtime not in RUNTIMES:
        raise InputError(expected=f"one of {', '.join(RUNTIMES)}", found=repr(runtime), fix="give another --target")
    if max(batches) > MAX_BATCH:
        raise InputError(
            expected=f"batches of at most {MAX_BATCH} segments", found=str(max(batches)), fix="change --batches"
        )
    if runtime == "tensorrt-rtx":
        if not sm:
            raise InputError(
                expected="the GPUs to build for, since TensorRT-RTX needs none to build",
                found="no --sm",
                fix=f"give --sm with numbers of {', '.join(map(str, RTX_SM))}",
            )
        unknown = [number for number in sm if number not in RTX_SM]
        if unknown:
            raise InputError(
                expected=f"SM numbers among {', '.join(map(str, RTX_SM))}, those of TensorRT-RTX",
                found=", ".join(map(str, unknown)),
                fix="leave out the others; build for data-centre GPUs with --target tensorrt on one",
            )
        if refit:
            _require_driver()
    version = str(load_tensorrt(runtime).__version__)
    if runtime == "tensorrt":
        own = _own_sm()
        if sm and (own not in sm if kernels_too else sm != (own,)):
            raise InputError(
                expected=f"--sm {'with ' * kernels_too}{own}, that of the GPU here: TensorRT builds on the GPU that "
                "will run the plan",
                found=", ".join(map(str, sm)),
                fix=f"{'add it' if kernels_too else 'leave --sm out'}, or run this on the other machine",
            )
        sm = (own,)
    return Options(runtime, version, tuple(sorted(set(sm))), tuple(sorted(set(batches))), refit)


def wanted(manifest: Manifest, options: Options, folder: Path) -> list[Plan]:
    """The plans of every graph of the bundle in `folder`, named by their keys, the smallest graph first."""
    kernels = Kernels(folder, options.sm[0]).nodes() if options.runtime == "tensorrt" else set()
    return [
        named(
            Plan(
                graph=graph,
                file="",
                runtime=options.runtime,
                version=options.version,
                sm=options.sm,
                batches=options.batches,
                flags=(REFIT,) if options.refit else (),
                graph_sha256=graph_sha256(manifest, graph),
                kernels_sha256=_kernels(manifest, kernels & nodes_of(folder / manifest.graphs[graph].file)),
                accepted_on=(),
            ),
            manifest,
        )
        for graph in sorted(manifest.graphs, key=lambda graph: manifest.files[manifest.graphs[graph].file].bytes)
    ]


def add_plans(
    folder: Path,
    options: Options,
    *,
    progress: Callable[[Step], None] = lambda _: None,
    make: Make = build_apart,
    gate: Gate = lambda *_: "",
) -> list[Plan]:
    """Build the plans that a bundle lacks or has damaged, and list them in its manifest, in one moment, once all are
    there and have passed the gate. Whatever ends this early leaves the bundle as it was.

    Raises:
        InputError: not a bundle, or it cannot be written.
        BuildError: a graph cannot be built.
        PlanRefused: a plan's answers are wrong.
    """
    result = []
    with plans_folder(folder):
        bundle = Bundle.open(folder)
        present = {plan.file: plan for plan in bundle.manifest.plans if _is_sound(bundle, plan)}
        damaged = {plan.file for plan in bundle.manifest.plans} - present.keys()
        for plan in wanted(bundle.manifest, options, folder):
            if plan.file in present:
                # Perhaps this machine has a GPU where the one that built it had none, or one of another name.
                plan = _accepted(bundle, present[plan.file], folder / plan.file, gate)
                result.append(plan)
                progress(Step(plan, "", 1.0, finished=True, kept=True))
                continue
            target = folder / plan.file
            part = target.with_name(f".{target.name}.part")
            built = make(
                request(bundle, plan),
                part,
                lambda phase, done, plan=plan: progress(Step(plan, phase, done)),  # type: ignore[misc]
            )
            progress(Step(plan, "comparing with ONNX Runtime", 1.0))
            plan = _accepted(bundle, plan, part, gate)
            part.replace(target)
            size = graph_size(bundle.file(plan.graph))
            if built.peak_bytes:  # a refit builds nothing
                record(plan.runtime, size, len(plan.batches), built.seconds, built.peak_bytes)
            result.append(plan)
            progress(Step(plan, "", 1.0, finished=True, bytes=target.stat().st_size, seconds=built.seconds))
        # Read again: whatever came into it meanwhile stays.
        manifest = read_manifest(folder)
        listed = without_stale(
            replace(manifest, plans=tuple(plan for plan in manifest.plans if plan.file not in damaged)), result
        )
        write_plans(folder, listed)
        kept = {plan.file for plan in listed}
        for plan in manifest.plans:
            if plan.file not in kept:
                progress(Step(plan, "", 1.0, finished=True, dropped=True))
    return result


def dry_run(bundle: Bundle, options: Options) -> list[str]:
    """Lines that say what building would take: no TensorRT runs."""
    lines = []
    seconds, memory, size = 0.0, 0.0, 0.0
    known = True
    present = {plan.file for plan in bundle.manifest.plans if _is_sound(bundle, plan)}
    for plan in wanted(bundle.manifest, options, bundle.path):
        if plan.file in present:
            lines.append(f"{plan.graph:8} there already")
            continue
        of_graph = graph_size(bundle.file(plan.graph))
        guess = estimate(of_graph, len(plan.batches), options.runtime)
        known = known and guess.seconds is not None
        seconds, memory = seconds + (guess.seconds or 0.0), max(memory, guess.memory_bytes or 0.0)
        size += guess.plan_bytes
        lines.append(
            f"{plan.graph:8} {of_graph.nodes:6} nodes  {of_graph.weight_bytes / 1e6:8.1f} MB of weights  "
            f"batches {','.join(map(str, plan.batches))}  {_guess(guess.seconds, guess.memory_bytes)}"
        )
    total = _guess(seconds, memory) if known else _guess(None, None)
    lines.append(f"{'all':8} {total}, about {size / 1e6:.0f} MB of plans")
    return lines


def request(bundle: Bundle, plan: Plan) -> Request:
    """What the builder needs to know of a plan."""
    graph = bundle.manifest.graphs[plan.graph]
    cache = None
    if plan.runtime == "tensorrt":
        # One for each GPU, version and set of kernels: TensorRT knows nothing of what is inside a plugin.
        name = f"timing-{plan.version}-sm{plan.sm[0]}-{plan.kernels_sha256[:16] or 'none'}.cache"
        cache = cache_folder() / name
    return Request(
        graph=bundle.file(plan.graph),
        runtime=plan.runtime,
        sm=plan.sm,
        batches=plan.batches,
        flags=plan.flags,
        inputs=graph.inputs,
        outputs=graph.outputs,
        timing_cache=cache,
        plugins=bundle.path if plan.kernels_sha256 else None,
    )


def _is_sound(bundle: Bundle, plan: Plan) -> bool:
    """Whether the file of a plan is there, unchanged."""
    try:
        bundle.plan(plan)
    except InputError:
        return False
    return True


def _accepted(bundle: Bundle, plan: Plan, file: Path, gate: Gate) -> Plan:
    """The plan with the GPU here among those that accepted it, where there is one that can run it."""
    name = gate(bundle, plan, file)
    return replace(plan, accepted_on=tuple(sorted({*plan.accepted_on, name} - {""})))


def _kernels(manifest: Manifest, nodes: set[str]) -> str:
    """What the kernels of a graph with these plugins are; nothing where it has none."""
    return manifest.files[KERNELS_FILE].sha256 if nodes else ""


def _guess(seconds: float | None, memory: float | None) -> str:
    if seconds is None or memory is None:
        return "time and memory: never measured for this runtime here"
    return f"about {seconds:.0f} s and {memory / 1e9:.1f} GB of memory"


def _own_sm() -> int:
    device = CudaDevice(0)
    try:
        return device.sm
    finally:
        device.close()


def _require_driver() -> None:
    """TensorRT-RTX compiles what refits the weights when it builds: 1.7.1 fails without a driver, even for one Add."""
    try:
        _own_sm()
    except InputError as error:
        raise InputError(
            expected="a machine with an NVIDIA GPU for --refit: TensorRT-RTX builds such plans with its driver",
            found=f"none on {platform.node()}",
            fix="leave out --refit, or run this on a machine with one",
        ) from error
