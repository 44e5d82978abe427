"""Work of a plan on a stream: recorded at its first run, and launched as a whole from then on."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from nuwaxl.engine.runners.arrivals import Arrivals
from nuwaxl.engine.runners.device.base import Device, Graph, Stream
from nuwaxl.engine.runners.slots import Tensor, Tensors
from nuwaxl.engine.runners.staging import Stages
from nuwaxl.engine.runners.stored import from_stored, stored, to_stored
from nuwaxl.engine.runners.tensorrt_engine import Context, PlanEngine
from nuwaxl.errors import DeviceLost, RenderError

Arrays = dict[str, NDArray[Any]]


class Transfers:
    """Copies between arrays and the tensors of one stream's plans."""

    def __init__(self, device: Device, stream: Stream) -> None:
        self.stream = stream
        self.arrivals = Arrivals(device, stream)
        self._stages = Stages(device, 2)

    def upload(self, tensors: Tensors, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Queue copies of arrays into the first rows of tensors."""
        sent = {tensors[name].at(0): to_stored(array, tensors[name].spec.dtype) for name, array in arrays.items()}
        self._stages.send(self.stream, sent)

    def download(self, tensor: Tensor, rows: Sequence[int]) -> NDArray[Any]:
        """Some rows of a tensor, as an array of its own; waits for what makes them."""
        dtype = tensor.spec.dtype
        return from_stored(self.arrivals.rows(tensor, rows, stored(dtype)).wait(), dtype)


class Work:
    """One execution of a context, and what is queued after it.

    Args:
        after: queues what follows, on the same stream.
    """

    def __init__(self, stream: Stream, context: Context, after: Callable[[], None] = lambda: None) -> None:
        self._stream = stream
        self._context = context
        self._after = after
        self._graph: Graph | None = None
        self._ran = False

    def __call__(self) -> None:
        if self._graph is not None:
            self._graph.launch(self._stream)
            return
        self._queue()
        if not self._ran:
            self._ran = True
            # The first run may allocate and compile; none of that may be left to the recording.
            self._stream.synchronize()
            if self._context.capturable(self._stream):
                try:
                    self._graph = self._stream.capture(self._queue)
                except DeviceLost:
                    raise
                except RenderError as error:  # so TensorRT finds out that it cannot be
                    # Python shows the same warning once, whatever the number of plans and buckets.
                    warnings.warn(
                        f"a plan cannot be captured into a CUDA graph ({error}): it is launched kernel by kernel, "
                        "which is slower at small batches",
                        stacklevel=2,
                    )

    def _queue(self) -> None:
        self._context.run(self._stream)
        self._after()

    def free(self) -> None:
        """Give the recording and the context back, once they no longer run."""
        self._stream.synchronize()
        if self._graph is not None:
            self._graph.free()
        self._context.free()


class Call:
    """One bucket of a graph that takes arrays and gives arrays."""

    def __init__(self, engine: PlanEngine, bucket: int, device: Device, transfers: Transfers) -> None:
        self._transfers = transfers
        self._outputs = [spec.name for spec in engine.graph.outputs]
        context = engine.context(bucket, transfers.stream)  # freed with the engine, whatever fails from here on
        self._tensors = Tensors(device, (*engine.graph.inputs, *engine.graph.outputs), bucket)
        self._tensors.zero(transfers.stream)
        context.bind(self._tensors.addresses())
        self._work = Work(transfers.stream, context)

    def run(self, inputs: Arrays, count: int) -> Arrays:
        """The outputs of the first `count` rows."""
        tensors = self.queue(inputs)
        return {name: self._transfers.download(tensors[name], range(count)) for name in self._outputs}

    def queue(self, inputs: Arrays) -> Tensors:
        """Queue it; its tensors, which hold the outputs until the next call."""
        self._transfers.upload(self._tensors, inputs)
        self._work()
        return self._tensors

    def free(self) -> None:
        """Give its memory back."""
        self._work.free()
        self._tensors.free()


class Executor:
    """Runs a plan on inputs of exactly one bucket, for the gate: one bucket at a time has memory."""

    def __init__(self, engine: PlanEngine, device: Device, transfers: Transfers) -> None:
        self._engine = engine
        self._device = device
        self._transfers = transfers
        self._bucket = 0
        self._call: Call | None = None

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        bucket = len(next(iter(inputs.values())))
        if self._call is None or bucket != self._bucket:
            self.free()
            self._call, self._bucket = Call(self._engine, bucket, self._device, self._transfers), bucket
        return self._call.run(dict(inputs), bucket)

    def free(self) -> None:
        """Give the memory back."""
        if self._call is not None:
            self._call.free()
            self._call = None
