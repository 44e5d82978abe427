"""A runner whose tensors stay in a device's memory from the first noise to the decoded frames.

Sessions of ONNX Runtime are bound to that memory (IO binding), one batch bucket at a time; between two steps nothing is
copied to the host. Which provider runs the sessions and which memory they use is the caller's: CUDA (cuda.py), or the
CPU, on which the same code runs in the tests.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nuwaxl.engine.bundle import Bundle
from nuwaxl.engine.bundle_schema import TensorSpec
from nuwaxl.engine.runners.arrivals import Arrivals
from nuwaxl.engine.runners.base import FEEDBACK, Float32, Segments, UInt8
from nuwaxl.engine.runners.device.base import Device, Stream
from nuwaxl.engine.runners.slots import Rows, Tensor, Tensors, both_ends, bucket, copy_rows, room
from nuwaxl.engine.runners.staging import Stages, Staging
from nuwaxl.errors import DeviceLost

_ROWS = ("timestep", "coefficients", "guidance")  # what comes from the host at every step
_BFLOAT16 = 16  # ONNX's number of the type, which numpy does not have
_STAGES = 2  # the host is at most so many steps ahead of the device


class BoundRunner:
    """See Runner.

    Args:
        bundle: the model.
        device: where the tensors are; closed with the runner.
        open_session: an ONNX Runtime session of a graph on that device, by the graph's name. All of a runner's
            sessions queue their work on `stream`.
        stream: of the device.
        run_options: for a run of the step graph that is replayed from a CUDA graph, by its number: the same number
            means the same addresses and shapes. For None, a run that is not.
        forget: called with the numbers of which there will be no more runs.
    """

    later = True  # see DecodesLater

    def __init__(
        self,
        bundle: Bundle,
        device: Device,
        stream: Stream,
        open_session: Callable[[str], Any],
        run_options: Callable[[int | None], Any] = lambda number: None,
        forget: Callable[[Sequence[int]], None] = lambda numbers: None,
    ) -> None:
        self.device = device
        self.stream = stream
        self.graphs = bundle.manifest.graphs
        self._open_session = open_session
        self._run_options = run_options
        self._forget = forget
        self._sessions: dict[str, Any] = {}
        self._pool: list[StepSlots] = []
        self._numbers = 0
        self._options: dict[int | None, Any] = {}
        self.staging = Staging(device)
        self.arrivals = Arrivals(device, stream)
        self._prepared: tuple[Tensors, Tensors] | None = None
        self._decoding: tuple[Tensors, Tensors] | None = None
        for name in ("prepare", "step", "decode"):
            self._session(name)

    def encode_text(self, tokens: NDArray[np.int64]) -> Float32:
        """See Runner.encode_text."""
        prompt: Float32 = self._run_unbound("text", "prompt", {"tokens": tokens})
        return prompt

    def encode(self, video: UInt8) -> Float32:
        """See Runner.encode."""
        latents: Float32 = self._run_unbound("encode", "latents", {"video": video})
        return latents

    def start(self, segments: Segments) -> "BoundDenoising":
        """See Runner.start."""
        slots = self._pool.pop() if self._pool else StepSlots(self)
        denoising = BoundDenoising(self, slots)
        # Kept for the next batch as soon as this one is no longer held: its memory is fitting, its graphs are captured.
        weakref.finalize(denoising, self._pool.append, slots)
        denoising.join(segments)
        return denoising

    def rows(self, count: int) -> int:
        """See Padded."""
        return bucket(count)

    def decode(self, latents: Float32) -> UInt8:
        """See Runner.decode."""
        return self.begin_decode(latents)()

    def begin_decode(self, latents: Float32) -> Callable[[], UInt8]:
        """See DecodesLater. One segment at a time: the decoder needs the most memory of all graphs."""
        if self._decoding is None:
            self._decoding = both_ends(self.device, self.graphs["decode"], 1)
        source, target = self._decoding
        video = target["video"]
        arrival = self.arrivals.begin((len(latents), *(int(size) for size in video.spec.shape[1:])), np.uint8)
        for number in range(len(latents)):
            self.staging.send(self.stream, {source["latents"].at(0): latents[number]})
            self.run("decode", source, target, 1)
            arrival.put(number * video.row_bytes, video.at(0), video.row_bytes)
        arrival.depart()
        return arrival.wait

    def prepare(self, segments: Segments, put: Callable[[Tensors, int], None]) -> None:
        """Run what does not depend on the timestep, one segment at a time: what it needs grows with them, and the CUDA
        provider plans all convolutions of a graph anew whenever their number changes. `put(state, number)` takes the
        state of that segment from the first row while it is there."""
        if self._prepared is None:
            self._prepared = both_ends(self.device, self.graphs["prepare"], 1)
        source, state = self._prepared
        for number in range(len(segments.x)):
            given = {source[name].at(0): array[number] for name, array in segments.given.items()}
            self.staging.send(self.stream, given)
            self.run("prepare", source, state, 1)
            put(state, number)

    def run(self, graph: str, inputs: Tensors, outputs: Tensors, rows: int) -> None:
        """Run a graph once on the first rows of tensors."""
        session = self._session(graph)
        self.run_bound(graph, self.binding(session, inputs.all(), outputs.all(), rows), None)

    def binding(self, session: Any, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor], rows: int) -> Any:
        """The session's inputs and outputs bound to the first rows of tensors of their names."""
        binding = session.io_binding()
        for bind, tensors in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
            for name, tensor in tensors.items():
                bind(
                    name=name,
                    device_type=self.device.kind,
                    device_id=self.device.index,
                    element_type=element_type(tensor.spec),
                    shape=[rows, *(int(size) for size in tensor.spec.shape[1:])],
                    buffer_ptr=tensor.memory.address,
                )
        return binding

    def run_bound(self, graph: str, binding: Any, number: int | None) -> None:
        """Run a graph on what is bound; `number` as for `run_options`."""
        if number not in self._options:
            self._options[number] = self._run_options(number)
        with self._on_device():
            self._session(graph).run_with_iobinding(binding, self._options[number])

    def session(self, graph: str) -> Any:
        """The session of a graph."""
        return self._session(graph)

    def new_number(self) -> int:
        """A number that no run of the step graph had before."""
        self._numbers += 1
        return self._numbers

    def forget(self, numbers: Sequence[int]) -> None:
        """There are no more runs of these numbers: what was captured under them goes."""
        for number in numbers:
            self._options.pop(number, None)
        self._forget(numbers)

    def close(self) -> None:
        """See Runner.close."""
        self._options.clear()
        self._pool.clear()
        self._sessions.clear()
        with suppress(DeviceLost):  # there is nothing to free any more
            self.device.close()

    def _run_unbound(self, graph: str, output: str, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """An output of a graph for arrays of the host."""
        with self._on_device():
            result: NDArray[Any] = self._session(graph).run([output], dict(inputs))[0]
            return result

    @contextmanager
    def _on_device(self) -> Iterator[None]:
        """For what ONNX Runtime does with the device, which may be a thread's first work on it."""
        self.device.enter()
        try:
            yield
        except Exception:
            self.stream.synchronize()  # raises DeviceLost where that is what happened
            raise

    def _session(self, name: str) -> Any:
        if name not in self._sessions:
            self._sessions[name] = self._open_session(name)
        return self._sessions[name]


class StepSlots:
    """Memory of the step graph's tensors for one batch under way, and its bindings by bucket."""

    def __init__(self, runner: BoundRunner) -> None:
        self._runner = runner
        graph = runner.graphs["step"]
        self._inputs, self._outputs = graph.inputs, graph.outputs
        self.tensors: Tensors | None = None
        self._bindings: dict[int, tuple[Any, int]] = {}
        self._stages = Stages(runner.device, _STAGES)
        self._noise_is_zero = 0  # rows of the noise that are known to be zero

    @property
    def rows(self) -> int:
        """Segments that there is room for."""
        return 0 if self.tensors is None else self.tensors.rows

    def grow(self, rows: int) -> None:
        """Make room for at least so many segments; what is there stays."""
        if rows <= self.rows:
            return
        larger = Tensors(self._runner.device, (*self._inputs, *self._outputs), room(rows))
        old = self.tensors
        if old is not None:
            for name, tensor in old.all().items():
                self._runner.stream.copy(larger[name].at(0), tensor.at(0), old.rows * tensor.row_bytes)
            self._runner.stream.synchronize()
            self._runner.forget([number for _, number in self._bindings.values()])
            self._bindings.clear()
            old.free()
        # Rows that are only padding are computed too: zeros, so that they are no slower than others.
        larger.zero(self._runner.stream, 0 if old is None else old.rows)
        self.tensors = larger
        self._noise_is_zero = 0

    def step(self, rows: Mapping[str, NDArray[Any]], noise: tuple[Sequence[int], Float32] | None, count: int) -> None:
        """One step of the first `count` rows: what the host gives a step by row, and the noise of some rows."""
        tensors = self.tensors
        assert tensors is not None
        stream = self._runner.stream
        sent: dict[int, NDArray[Any]] = {tensors[name].at(0): array for name, array in rows.items()}
        if noise is not None:
            sent |= {tensors["noise"].at(row): values for row, values in zip(*noise, strict=True)}
            self._noise_is_zero = 0
        elif self._noise_is_zero < count:
            stream.zero(tensors["noise"].at(0), count * tensors["noise"].row_bytes)
            self._noise_is_zero = count
        stage = self._stages.send(stream, sent)
        binding, number = self._binding(count)
        self._runner.run_bound("step", binding, number)
        for output, name in FEEDBACK.items():
            stream.copy(tensors[name].at(0), tensors[output].at(0), count * tensors[name].row_bytes)
        stage.passed(stream)

    def _binding(self, count: int) -> tuple[Any, int]:
        if count not in self._bindings:
            tensors = self.tensors
            assert tensors is not None
            inputs = {spec.name: tensors[spec.name] for spec in self._inputs}
            outputs = {spec.name: tensors[spec.name] for spec in self._outputs}
            binding = self._runner.binding(self._runner.session("step"), inputs, outputs, count)
            self._bindings[count] = binding, self._runner.new_number()
        return self._bindings[count]


class BoundDenoising:
    """A batch under way (see Denoising)."""

    def __init__(self, runner: BoundRunner, slots: StepSlots) -> None:
        self._runner = runner
        self._slots = slots
        self._rows = Rows()

    def step(
        self, timestep: NDArray[np.int64], coefficients: Float32, guidance: Float32, noise: Float32 | None
    ) -> None:
        """See Denoising.step. It is queued: this returns while the device is at it."""
        rows, count = self._rows.all, self._rows.bucket
        given: dict[str, NDArray[Any]] = {}
        arrays: tuple[NDArray[Any], ...] = (timestep, coefficients, guidance)
        for name, values in zip(_ROWS, arrays, strict=True):
            padded = np.zeros((count, *values.shape[1:]), dtype=np.float32)
            padded[rows] = values
            given[name] = padded
        self._slots.step(given, None if noise is None else (rows, noise), count)

    def latents(self, slots: Sequence[int]) -> Float32:
        """See Denoising.latents."""
        latents: Float32 = self._runner.arrivals.rows(self._tensors["x"], self._rows.of(slots), np.float32).wait()
        return latents

    def join(self, segments: Segments) -> None:
        """See Denoising.join."""
        rows = self._rows.join(len(segments.x))
        try:
            self._fill(rows, segments)
        except BaseException:
            self._rows.leave(len(rows))  # the others go on as if these had never come
            raise

    def _fill(self, rows: Sequence[int], segments: Segments) -> None:
        self._slots.grow(self._rows.bucket)
        stream, tensors = self._runner.stream, self._tensors

        def put(state: Tensors, number: int) -> None:
            for name, tensor in state.all().items():
                stream.copy(tensors[name].at(rows[number]), tensor.at(0), tensor.row_bytes)

        self._runner.prepare(segments, put)
        self._runner.staging.send(
            stream, {tensors["x"].at(row): x for row, x in zip(rows, np.asarray(segments.x, np.float32), strict=True)}
        )
        for row in rows:
            stream.zero(tensors["history"].at(row), tensors["history"].row_bytes)

    def keep(self, slots: Sequence[int]) -> None:
        """See Denoising.keep."""
        moves = self._rows.keep(slots)
        if moves:
            for name, tensor in self._tensors.all().items():
                if name not in (*FEEDBACK, *_ROWS, "noise"):
                    copy_rows(self._runner.stream, tensor.at, tensor.at, moves, tensor.row_bytes)

    @property
    def _tensors(self) -> Tensors:
        assert self._slots.tensors is not None
        return self._slots.tensors


def element_type(spec: TensorSpec) -> Any:
    """The type as IO binding takes it."""
    return _BFLOAT16 if spec.dtype == "bfloat16" else np.dtype(spec.dtype).type
