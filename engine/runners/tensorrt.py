"""A runner on TensorRT or TensorRT-RTX: the bundle's plans, on one stream, with latents and state on the device.

Batches go into buckets, the batch sizes that the plans have a profile for, padded where they are smaller. A bucket's
tensors have fixed addresses, and after its first run its work is launched as one CUDA graph. Not yet run on a GPU.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nuwaxl.engine.bundle import Bundle
from nuwaxl.engine.costs import cache_folder
from nuwaxl.engine.devices import Worker
from nuwaxl.engine.plans import Target, build_hint, find_plan
from nuwaxl.engine.runners.base import FEEDBACK, Float32, Segments, UInt8
from nuwaxl.engine.runners.device.base import Stream
from nuwaxl.engine.runners.device.cuda import CudaDevice
from nuwaxl.engine.runners.slots import Tensors
from nuwaxl.engine.runners.tensorrt_acceptance import Reference, ensure_accepted
from nuwaxl.engine.runners.tensorrt_calls import Call, Executor, Transfers, Work
from nuwaxl.engine.runners.tensorrt_engine import PlanEngine, Scratch
from nuwaxl.engine.runners.tensorrt_module import load_tensorrt
from nuwaxl.errors import InputError, RenderError

Arrays = dict[str, NDArray[Any]]
_LOOP = ("prepare", "step", "decode")  # loaded at once; the others at their first use


class TensorRTRunner:
    """See Runner.

    Args:
        device: the GPU; opened here if None.
        trt: stands in for the module of TensorRT in tests.

    Raises:
        InputError: no GPU or no TensorRT here, no plan for both, or a plan that cannot be loaded.
        PlanRefused: a plan that nobody has verified gives wrong answers here.
    """

    later = True  # see DecodesLater

    def __init__(self, bundle: Bundle, worker: Worker, device: CudaDevice | None = None, trt: Any = None) -> None:
        self._bundle = bundle
        self._trt = load_tensorrt(worker.kind) if trt is None else trt
        self._device = CudaDevice(worker.index) if device is None else device
        self._engines: dict[str, PlanEngine] = {}
        try:
            self._target = Target(worker.kind, str(self._trt.__version__), self._device.sm)
            self._plans = {
                graph: find_plan(bundle.manifest, graph, self._target, str(bundle.path))
                for graph in bundle.manifest.graphs
            }
            self._buckets = self._common_buckets()
            self._stream = self._device.stream()
            self._transfers = Transfers(self._device, self._stream)
            self._calls: dict[tuple[str, int], Call] = {}
            self._lanes: dict[int, list[_Lane]] = {}
            self._load(_LOOP)
        except BaseException:
            self._device.close()
            raise

    def encode_text(self, tokens: NDArray[np.int64]) -> Float32:
        """See Runner.encode_text."""
        prompt: Float32 = self._run("text", {"tokens": tokens})["prompt"]
        return prompt

    def start(self, segments: Segments) -> "TensorRTDenoising":
        """See Runner.start."""
        return TensorRTDenoising(self, self.prepare(segments))

    def rows(self, count: int) -> int:
        """See Padded. Several buckets run one after the other."""
        return sum(bucket for bucket, _ in split(count, self._buckets))

    def decode(self, latents: Float32) -> UInt8:
        """See Runner.decode."""
        return self.begin_decode(latents)()

    def begin_decode(self, latents: Float32) -> Callable[[], UInt8]:
        """See DecodesLater."""
        shape = self._bundle.manifest.graphs["decode"].outputs[0].shape[1:]
        arrival = self._transfers.arrivals.begin((len(latents), *(int(size) for size in shape)), np.uint8)
        offset = 0
        for call, rows, count in self._calls_for("decode", {"latents": latents}):
            video = call.queue(rows)["video"]
            arrival.put(offset, video.at(0), count * video.row_bytes)
            offset += count * video.row_bytes
        arrival.depart()
        return arrival.wait

    def encode(self, video: UInt8) -> Float32:
        """See Runner.encode."""
        latents: Float32 = self._run("encode", {"video": video})["latents"]
        return latents

    def close(self) -> None:
        """See Runner.close."""
        for engine in self._engines.values():
            engine.save_cache()
        # Contexts and engines once nothing of them runs, and before the memory that they point to.
        with suppress(RenderError):  # a lost device runs nothing
            self._stream.synchronize()
        for engine in self._engines.values():
            engine.free()
        self._engines.clear()
        self._device.close()

    def prepare(self, segments: Segments) -> "list[tuple[_Lane, int]]":
        """Segments that begin, in lanes: for each its lane and its row there."""
        rows = []
        start = 0
        lanes = self.lanes(len(segments.x))
        try:
            for lane, count in lanes:
                lane.prepare(segments.part(slice(start, start + count)), self._transfers)
                rows += [(lane, row) for row in range(count)]
                start += count
        except BaseException:
            self.release([lane for lane, _ in lanes])
            raise
        return rows

    def lanes(self, count: int) -> "list[tuple[_Lane, int]]":
        """Free lanes for `count` segments, and how many go into each."""
        result: list[tuple[_Lane, int]] = []
        try:
            for bucket, filled in split(count, self._buckets):
                free = self._lanes.setdefault(bucket, [])
                result.append((free.pop() if free else self._new_lane(bucket), filled))
        except BaseException:
            self.release([lane for lane, _ in result])
            raise
        return result

    def release(self, lanes: "Sequence[_Lane]") -> None:
        """Take lanes back. What is queued on them goes before what their next users queue."""
        for lane in lanes:
            self._lanes.setdefault(lane.bucket, []).append(lane)

    @property
    def device_name(self) -> str:
        """The GPU's model."""
        return self._device.name

    @property
    def runtime(self) -> str:
        """The runtime and its version."""
        return f"{self._target.runtime} {self._target.version}"

    @property
    def buckets(self) -> tuple[int, ...]:
        """Batches that segments are denoised in."""
        return self._buckets

    @property
    def stream(self) -> Stream:
        """The runner's one stream."""
        return self._stream

    @property
    def transfers(self) -> Transfers:
        """Its copies to and from the host."""
        return self._transfers

    def _run(self, graph: str, inputs: Arrays) -> Arrays:
        """A graph on any number of rows."""
        parts = [call.run(rows, count) for call, rows, count in self._calls_for(graph, inputs)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _calls_for(self, graph: str, inputs: Arrays) -> Iterator[tuple[Call, Arrays, int]]:
        """The calls that any number of rows takes, one after another: with the rows of each, and how many."""
        if graph not in self._engines:
            self._load((graph,))
        start = 0
        for bucket, count in split(len(next(iter(inputs.values()))), self._plans[graph].batches):
            if (graph, bucket) not in self._calls:
                self._calls[graph, bucket] = Call(self._engines[graph], bucket, self._device, self._transfers)
            rows = {name: array[start : start + count] for name, array in inputs.items()}
            yield self._calls[graph, bucket], rows, count
            start += count

    def _load(self, graphs: Sequence[str]) -> None:
        """Load plans, then see that each was verified on this GPU: all sizes are known before a context is made."""
        scratch = Scratch(self._device)
        reference = Reference(self._bundle)
        engines: dict[str, PlanEngine] = {}
        try:
            for graph in graphs:
                plan = self._plans[graph]
                cache = cache_folder() / "tensorrt-rtx" / f"{Path(plan.file).stem}-{self._target.sm}.cache"
                file = self._bundle.plan(plan)
                engines[graph] = PlanEngine(self._trt, plan, self._bundle.manifest.graphs[graph], file, scratch, cache)
            for graph, engine in engines.items():
                execute = Executor(engine, self._device, self._transfers)
                try:
                    ensure_accepted(self._bundle, self._plans[graph], self._device.name, execute, reference)
                finally:
                    execute.free()
                engine.save_cache()
        except BaseException:
            for engine in engines.values():
                engine.free()
            scratch.free()
            raise
        self._engines |= engines  # only now: nobody runs a plan that was refused

    def _new_lane(self, bucket: int) -> "_Lane":
        return _Lane(self, self._engines["prepare"], self._engines["step"], bucket)

    def memory(self, specs: Any, batch: int) -> Tensors:
        """Tensors on the device, zero at first."""
        tensors = Tensors(self._device, specs, batch)
        tensors.zero(self._stream)
        return tensors

    def _common_buckets(self) -> tuple[int, ...]:
        """Batches that both graphs of the inner loop have a profile for."""
        prepare, step = (self._plans[graph].batches for graph in ("prepare", "step"))
        common = tuple(sorted(set(prepare) & set(step)))
        if not common:
            raise InputError(
                expected="plans of prepare and step with a batch in common",
                found=f"{prepare} and {step}",
                fix=build_hint(self._target, str(self._bundle.path)),
            )
        return common


class TensorRTDenoising:
    """A batch under way on TensorRT (see Denoising)."""

    def __init__(self, runner: TensorRTRunner, rows: "list[tuple[_Lane, int]]") -> None:
        self._runner = runner
        self._rows = rows
        # Lanes go back when nobody has the batch any more, whoever drops it last.
        self._held: list[_Lane] = _lanes_of(rows)
        weakref.finalize(self, _release, runner, self._held)

    def step(
        self, timestep: NDArray[np.int64], coefficients: Float32, guidance: Float32, noise: Float32 | None
    ) -> None:
        """See Denoising.step."""
        start = 0
        for lane in self._held:
            end = start + sum(each is lane for each, _ in self._rows)
            lane.step(
                {
                    "timestep": timestep[start:end].astype(np.float32),
                    "coefficients": coefficients[start:end],
                    "guidance": guidance[start:end],
                },
                None if noise is None else noise[start:end],
                self._runner.transfers,
            )
            start = end

    def latents(self, slots: Sequence[int]) -> Float32:
        """See Denoising.latents."""
        parts: list[Float32] = [
            self._runner.transfers.download(lane.tensors["x"], [row])
            for lane, row in (self._rows[slot] for slot in slots)
        ]
        return np.concatenate(parts)

    def join(self, segments: Segments) -> None:
        """See Denoising.join."""
        newcomers = self._runner.prepare(segments)
        lanes = _lanes_of(newcomers)
        try:
            self._arrange([*self._rows, *newcomers], also=lanes)
        except BaseException:  # no memory to arrange them anew: the others go on as if these had never come
            self._runner.release(lanes)
            raise

    def keep(self, slots: Sequence[int]) -> None:
        """See Denoising.keep."""
        self._arrange([self._rows[slot] for slot in slots])

    def _arrange(self, rows: "list[tuple[_Lane, int]]", also: "Sequence[_Lane]" = ()) -> None:
        """Put rows into lanes again, in this order: few and small ones, each filled from its first row."""
        wanted = [bucket for bucket, _ in split(len(rows), self._runner.buckets)]
        now = _lanes_of(rows)
        places = [(lane, row) for lane in now for row in range(sum(each is lane for each, _ in rows))]
        if rows == places and [lane.bucket for lane in now] == wanted:
            left = [lane for lane in (*self._held, *also) if lane not in now]
            self._rows, self._held[:] = rows, now
            self._runner.release(left)
            return
        old = [*self._held, *also]
        new: list[tuple[_Lane, int]] = []
        for lane, count in self._runner.lanes(len(rows)):
            for row in range(count):
                source, from_row = rows[len(new)]
                lane.take(row, source, from_row)
                new.append((lane, row))
        self._rows, self._held[:] = new, _lanes_of(new)
        self._runner.release(old)


class _Lane:
    """One bucket of segments under way: their tensors, and what runs on them."""

    def __init__(self, runner: TensorRTRunner, prepare: PlanEngine, step: PlanEngine, bucket: int) -> None:
        self.bucket = bucket
        self._stream = runner.stream
        state = {spec.name for spec in prepare.graph.outputs}
        self._kept = [*state, *FEEDBACK.values()]  # what a segment is, beside what each call brings
        with ExitStack() as undo:  # contexts are freed with their engine
            self.tensors = runner.memory((*step.graph.inputs, *step.graph.outputs), bucket)
            undo.callback(self.tensors.free)
            self._given = runner.memory(prepare.graph.inputs, bucket)
            undo.callback(self._given.free)
            context = prepare.context(bucket, runner.stream)
            context.bind({**self._given.addresses(), **{name: self.tensors[name].at(0) for name in state}})
            self._prepare = Work(runner.stream, context)
            context = step.context(bucket, runner.stream)
            context.bind(self.tensors.addresses())
            self._step = Work(runner.stream, context, after=self._feed_back)
            undo.pop_all()

    def prepare(self, segments: Segments, transfers: Transfers) -> None:
        """Begin segments, in the first rows."""
        transfers.upload(self._given, segments.given)
        transfers.upload(self.tensors, {"x": segments.x})
        history = self.tensors["history"]
        self._stream.zero(history.at(0), self.bucket * history.row_bytes)
        self._prepare()

    def step(self, calls: Arrays, noise: Float32 | None, transfers: Transfers) -> None:
        """Move the segments by one step. Where none adds noise its coefficient is 0: what is there does not count."""
        if noise is not None:
            calls = {**calls, "noise": noise}
        transfers.upload(self.tensors, calls)
        self._step()

    def take(self, row: int, source: "_Lane", from_row: int) -> None:
        """Copy a segment of another lane."""
        for name in self._kept:
            own = self.tensors[name]
            self._stream.copy(own.at(row), source.tensors[name].at(from_row), own.row_bytes)

    def _feed_back(self) -> None:
        for output, name in FEEDBACK.items():
            own = self.tensors[name]
            self._stream.copy(own.at(0), self.tensors[output].at(0), self.bucket * own.row_bytes)


def split(count: int, buckets: Sequence[int]) -> list[tuple[int, int]]:
    """Buckets for `count` rows, and the rows in each: full ones of the largest, then the smallest for the rest."""
    largest = max(buckets)
    parts = [(largest, largest)] * (count // largest)
    if rest := count % largest:
        parts.append((min(bucket for bucket in buckets if bucket >= rest), rest))
    return parts


def _lanes_of(rows: "Sequence[tuple[_Lane, int]]") -> "list[_Lane]":
    """The lanes of rows, each once, in order."""
    return list(dict.fromkeys(lane for lane, _ in rows))


def _release(runner: TensorRTRunner, lanes: "list[_Lane]") -> None:
    runner.release(lanes)
