"""What a denoising step costs on a device, by batch size: measured before the first render, kept for the next time."""

import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

import numpy as np

from nuwaxl.engine._core import CostModel
from nuwaxl.engine.bundle import Bundle
from nuwaxl.engine.bundle_schema import Network
from nuwaxl.engine.probe import Probe
from nuwaxl.engine.runners.base import Padded, Runner, goes_on
from nuwaxl.engine.samples import random_latents
from nuwaxl.errors import DeviceLost, NuwaxlError, RenderCancelled, RenderError, one_line
from nuwaxl.files import keep_file

# A larger batch is measured only while the last one made a segment cheaper by so much.
_GAIN = 0.02
_REPEATS = 3
_TABLE = 3  # how costs are measured: those that another release kept are measured again
_LONG_S = 10.0  # what takes longer is timed once after it was warmed up
_LOAD_S = 0.1  # a device that works by itself is timed for so long, after it was at work for as long


def device_costs(
    bundle: Bundle,
    runners: Sequence[Runner],
    descriptions: Sequence[str],
    max_batch: int,
    check: Callable[[], None] = lambda: None,
) -> list[CostModel]:
    """The cost model of every runner, from the cache or measured now, all devices at the same time.

    Args:
        descriptions: what tells a device from others of another speed, one a runner.
        max_batch: the largest batch of interest.
        check: called between steps, in other threads; what it raises ends the measurement.

    Raises:
        DeviceLost: all devices are lost. While there are others, a render finds out itself about one that is.
        RenderError: a runner failed, with what went wrong as its cause.
    """
    if (kept := kept_costs(bundle, descriptions, max_batch)) is not None:
        return kept
    # All measure, known or not: what shares a machine is slower together than alone.
    given_up = threading.Event()

    def go_on() -> None:
        check()
        if given_up.is_set():
            raise RenderCancelled("expected the measurement to go on; found it given up; measure again")

    with ThreadPoolExecutor(len(runners), thread_name_prefix="nuwaxl costs") as pool:
        try:
            measured = list(
                pool.map(lambda runner: _measured(runner, bundle.manifest.network, max_batch, go_on), runners)
            )
        except BaseException as error:
            given_up.set()  # Ctrl-C, or another device's error: none goes on for long
            if isinstance(error, NuwaxlError) or not isinstance(error, Exception):
                raise
            detail = f"{type(error).__name__}: {one_line(error)}"
            raise RenderError(f"measuring the devices' costs failed: {detail}") from error
    for description, result in zip(descriptions, measured, strict=True):
        if isinstance(result, CostModel):
            _write(_cache_file(bundle, description), result, max_batch)
    known = [result for result in measured if isinstance(result, CostModel)]
    if not known:
        raise next(result for result in measured if isinstance(result, DeviceLost))
    return [result if isinstance(result, CostModel) else known[0] for result in measured]


def kept_costs(bundle: Bundle, descriptions: Sequence[str], max_batch: int) -> list[CostModel] | None:
    """As device_costs, from the cache; None where something is not there."""
    found = [_read(_cache_file(bundle, description), max_batch) for description in descriptions]
    kept = [cost for cost in found if cost is not None]
    return kept if len(kept) == len(found) else None


def largest_batch(max_batch: int, segments: int) -> int:
    """The largest batch of interest where there are so many segments: not all up to `max_batch`, for a short film; but
    the next power of two, so that few films want more than those before."""
    return min(max_batch, 1 << (segments - 1).bit_length())


def measure(runner: Runner, network: Network, max_batch: int, check: Callable[[], None] = lambda: None) -> CostModel:
    """Time steps of batches of 1, 2, 4, ... segments up to max_batch, while a segment gets cheaper; and a decode.

    A batch and the next larger one are timed in turn: what else the machine does meanwhile slows both, so that neither
    looks cheaper than it is beside the other. Of a runner that fills batches up (see Padded) every size up to the
    largest is known then, by the time of what it is filled up to, which is timed alone where it is none of these.
    `check` is called before each step and decode.
    """
    step_s: dict[int, float] = {}
    smaller, larger = 1, min(2, max_batch)
    while True:
        timed_s = _steps_s(runner, network, sorted({smaller, larger}), check)
        for size, seconds in timed_s.items():
            step_s[size] = min(seconds, step_s.get(size, seconds))
        gains = timed_s[larger] / larger < (1 - _GAIN) * timed_s[smaller] / smaller
        if larger == max_batch or not gains:
            break
        smaller, larger = larger, min(2 * larger, max_batch)
    if isinstance(runner, Padded):
        step_s = _of_every_size(runner, step_s, lambda size: _steps_s(runner, network, [size], check)[size])
    return CostModel(list(step_s), list(step_s.values()), decode_s=_decode_s(runner, network, check))


def _of_every_size(runner: Padded, step_s: dict[int, float], time_step: Callable[[int], float]) -> dict[int, float]:
    """Seconds of a step by batch size, of all sizes up to the largest in `step_s`; what is not there is timed now."""
    largest = max(step_s)
    by_rows = {runner.rows(size): seconds for size, seconds in step_s.items()}
    for size in range(largest, 0, -1):
        if runner.rows(size) not in by_rows:
            by_rows[runner.rows(size)] = time_step(size)
    return {size: by_rows[runner.rows(size)] for size in range(1, largest + 1)}


def _measured(runner: Runner, network: Network, max_batch: int, check: Callable[[], None]) -> CostModel | DeviceLost:
    try:
        return measure(runner, network, max_batch, check)
    except DeviceLost as error:
        return error


def cache_folder() -> Path:
    """$NUWAXL_CACHE, else nuwaxl below $XDG_CACHE_HOME or ~/.cache; among temporary files for users without a home."""
    if own := os.environ.get("NUWAXL_CACHE"):
        return Path(own)
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "nuwaxl"
    try:
        return Path.home() / ".cache" / "nuwaxl"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"nuwaxl-{os.getuid()}"


def _steps_s(runner: Runner, network: Network, sizes: Sequence[int], check: Callable[[], None]) -> dict[int, float]:
    """Seconds of one step by batch size: the fastest of a few of each in turn, or one if long, after one to warm up."""
    taken_s: dict[int, list[float]] = {size: [] for size in sizes}
    for repeat in range(1 + _REPEATS):
        for size in sizes:
            taken_s[size].append(_step_s(runner, network, size, check, warm=repeat > 0))
        if repeat > 0 and sum(seconds[-1] for seconds in taken_s.values()) > _LONG_S:
            break
    return {size: min(seconds[1:]) for size, seconds in taken_s.items()}


def _step_s(runner: Runner, network: Network, size: int, check: Callable[[], None], warm: bool) -> float:
    """Seconds of a step of so many segments.

    Of a device that works by itself, once it is warm, it is the mean of some that follow one another: a GPU that just
    begins has its highest clock rate, which it does not keep in a render.
    """
    check()
    probe = Probe(runner, network, size)

    def steps(count: int) -> None:
        for _ in range(count):
            check()
            probe.step()
        probe.wait()

    return _steadily(steps) if warm and goes_on(runner) else _timed(lambda: steps(1))


def _decode_s(runner: Runner, network: Network, check: Callable[[], None]) -> float:
    """Seconds of decoding a window: the fastest of a few."""
    latents = random_latents(network, 1, np.random.default_rng(0))

    def decode(count: int) -> None:
        for _ in range(count):
            check()
            runner.decode(latents)

    taken_s = [_timed(lambda: decode(1))]
    while len(taken_s) < _REPEATS and (len(taken_s) < 2 or taken_s[-1] < _LONG_S):
        taken_s.append(_steadily(decode) if goes_on(runner) else _timed(lambda: decode(1)))
    return min(taken_s)


def _steadily(repeat: Callable[[int], None]) -> float:
    """Seconds of one of several that follow one another, behind as many that are not timed."""
    count = max(1, round(_LOAD_S / _timed(lambda: repeat(1))))
    repeat(count)
    return _timed(lambda: repeat(count)) / count


def _timed(call: Callable[[], object]) -> float:
    started = perf_counter()
    call()
    return perf_counter() - started


def _cache_file(bundle: Bundle, description: str) -> Path:
    key = hashlib.sha256(f"{_TABLE} {bundle.sha256} {description}".encode()).hexdigest()
    return cache_folder() / f"costs-{key[:24]}.json"


def _read(file: Path, max_batch: int) -> CostModel | None:
    """The costs, if they were measured up to that batch size at least."""
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
        cost = CostModel(table["batch_sizes"], table["step_s"], table["decode_s"])
        return cost if table["max_batch"] >= max_batch else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _write(file: Path, cost: CostModel, max_batch: int) -> None:
    """Keep the costs; where that is not possible they are measured again the next time."""
    table = {"max_batch": max_batch, "batch_sizes": cost.batch_sizes, "step_s": cost.steps_s, "decode_s": cost.decode_s}
    keep_file(file, json.dumps(table).encode())
