"""A render by the plain networks of `nuwaxl.train`, as one writes it for torch.compile: depth by depth, in batches of
fixed sizes, whose tensors stay where they are for its CUDA graphs."""

from collections.abc import Callable
from functools import partial
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_map

from nuwaxl.engine import Bundle, Plan, Task
from nuwaxl.engine.job import Clip, Job
from nuwaxl.engine.request import resolve
from nuwaxl.engine.runners.base import Float32, Segments, UInt8
from nuwaxl.engine.text import PromptTokenizer
from nuwaxl.export.graphs import update
from nuwaxl.train.networks.injection import Injection
from nuwaxl.train.networks.mtd import MTD, Prepared
from nuwaxl.train.networks.text import CLIPText
from nuwaxl.train.networks.tklvae import TKLVAE


def step(
    mtd: MTD, x: Tensor, history: Tensor, timestep: Tensor, coefficients: Tensor, guidance: Tensor, prepared: Prepared
) -> tuple[Tensor, Tensor]:
    """A guided step of x (b, L, c, h, w), float32; `prepared` is for the batch of both prompts, 2b."""
    dtype = mtd.conv_in.weight.dtype
    cond, uncond = mtd.denoise(torch.cat([x, x]).to(dtype), torch.cat([timestep, timestep]), prepared).float().chunk(2)
    return update(x, history, torch.zeros_like(x), cond, uncond, coefficients, guidance)


def prepare(mtd: MTD, segments: Segments, device: torch.device) -> Prepared:
    """What `step` takes besides, of a batch and of its negative prompts."""
    dtype = mtd.conv_in.weight.dtype
    given = segments.given.values()
    prompt, negative, condition, mask = (torch.from_numpy(array).to(device, dtype) for array in given)
    prompts = torch.cat([prompt, negative[:, None].expand_as(prompt)])
    # The same for both prompts, so computed once; in the layout that the convolutions use.
    injections = [
        Injection(*(torch.cat([t, t]).contiguous(memory_format=torch.channels_last) for t in one))
        for one in mtd.injection(condition, mask)
    ]
    return Prepared(injections, mtd.prompt_keys_values(prompts.flatten(0, 1)))


class PlainNetworks:
    """The networks on a device, compiled or not; of a Runner what a render depth by depth asks. Text stays in float32.

    Attributes:
        sizes: that batches are filled up to, in increasing order; those of other sizes run as they are.
    """

    later = True  # see DecodesLater

    def __init__(self, text: CLIPText, mtd: MTD, tklvae: TKLVAE, device: torch.device, mode: str) -> None:
        """`mode` is "eager", or one of torch.compile's."""
        self.sizes: list[int] = []
        self._text, self._mtd, self._device = text, mtd, device
        self._dtype = mtd.conv_in.weight.dtype
        self._step: Any = step
        self._decode: Any = tklvae.decode
        if mode != "eager":
            compiled = partial(torch.compile, mode=mode, fullgraph=True, dynamic=False)
            self._step, self._decode = compiled(step), compiled(tklvae.decode)
        self._kept: dict[int, Any] | None = {} if mode != "eager" else None

    def encode_text(self, tokens: NDArray[np.int64]) -> Float32:
        """See Runner.encode_text."""
        embeddings: Float32 = _array(self._text(torch.from_numpy(tokens).to(self._device)))
        return embeddings

    def filled(self, count: int) -> int:
        """Segments that a batch of `count` runs as."""
        return next((size for size in self.sizes if size >= count), count)

    def start(self, segments: Segments) -> "PlainBatch":
        """A batch of these segments, filled up by the last of them."""
        count = len(segments.x)
        size = self.filled(count)
        if size > count:
            segments = segments.part([*range(count), *[count - 1] * (size - count)])
        x = _sent(segments.x, self._device, torch.float32)
        inputs = self._keep(size, (x, torch.zeros_like(x), prepare(self._mtd, segments, self._device)))
        return PlainBatch(partial(self._step, self._mtd), count, self._device, *inputs)

    def _keep(self, size: int, given: Any) -> Any:
        """The same values in the tensors of the first batch of this size: CUDA graphs read them in place."""
        if self._kept is None:
            return given
        if size not in self._kept:
            tree_map(torch._dynamo.mark_static_address, given)
            self._kept[size] = given
            return given
        return tree_map(lambda mine, new: mine.copy_(new), self._kept[size], given)

    def begin_decode(self, latents: Float32) -> Callable[[], UInt8]:
        """See DecodesLater: a video stays on the device until it is asked for."""
        video = self._decode(_sent(latents, self._device, self._dtype))
        video = ((video.permute(0, 1, 3, 4, 2).float() + 1.0) * 127.5).clamp(0.0, 255.0).round().to(torch.uint8)
        return partial(_array, video)

    def decode(self, latents: Float32) -> UInt8:
        """See Runner.decode."""
        return self.begin_decode(latents)()


class PlainBatch:
    """Segments that begin and end together."""

    def __init__(
        self, step: Any, count: int, device: torch.device, x: Tensor, history: Tensor, prepared: Prepared
    ) -> None:
        self._step, self._count, self._device = step, count, device
        self._x, self._history, self._prepared = x, history, prepared

    def step(self, timestep: int, coefficients: NDArray[np.floating], guidance: float) -> None:
        """Queue a step of all: index into the training schedule, a row of a sampler's table without noise, scale."""
        x = self._x
        row = _sent(coefficients.astype(np.float32), self._device, torch.float32)
        timesteps, scales = (torch.full((len(x),), float(value), device=self._device) for value in (timestep, guidance))
        moved = self._step(x, self._history, timesteps, row.repeat(len(x), 1), scales, self._prepared)
        for mine, new in zip((x, self._history), moved, strict=True):
            mine.copy_(new)

    def latents(self) -> Float32:
        """As they are now, (b, L, c, h, w)."""
        latents: Float32 = _array(self._x[: self._count])
        return latents


def job_of(bundle: Bundle, task: Task) -> Job:
    """The task as the engine resolves it."""
    network = bundle.manifest.network
    tokenizer = PromptTokenizer(bundle.tokenizer, network.prompt_tokens)
    return Job(network, tokenizer, task.story, resolve(bundle.manifest, task))


def batches(plan: Plan, most: int) -> list[list[int]]:
    """The segments of a tree depth by depth, in batches of `most`, the last of a depth of what is left."""
    of_depth = (list(ids) for _, ids in groupby(range(len(plan)), lambda segment: plan.segment(segment).depth))
    return [ids[first : first + most] for ids in of_depth for first in range(0, len(ids), most)]


def render(job: Job, networks: PlainNetworks, most: int) -> list[Clip]:
    """The whole job in batches of at most `most`: prompts, diffusions depth by depth (paper, 3.3), then decoding.

    Its sampler must be one that adds no noise.
    """
    runner: Any = networks  # all of a Runner that a job asks
    request = job.request
    job.encode_text(runner, lambda: None)

    def begin(segments: list[int]) -> Segments:
        return Segments.joined([job.begin(segment) for segment in segments])

    def depth(segments: list[int]) -> int:
        return request.plan.segment(segments[0]).depth

    begun: Segments | None = None
    for segments, following in pairwise([*batches(request.plan, most), []]):
        batch = networks.start(begun or begin(segments))
        for timestep, row in zip(request.table.timesteps, request.table.coefficients, strict=True):
            batch.step(int(timestep), row, request.guidance)
        # What waits for none of these is got ready while the device is at it.
        begun = begin(following) if following and depth(following) == depth(segments) else None
        for segment, latents in zip(segments, batch.latents(), strict=True):
            job.finish(segment, latents)
    videos = [job.decode(number, runner) for number in range(len(job.windows))]
    return [clip() for clip in videos]


def _sent(array: NDArray[Any], device: torch.device, dtype: torch.dtype) -> Tensor:
    """A copy on the device, on its way there. Its strides are its own: a view's, even those of a dimension of one,
    which mean nothing, would have torch compile what takes it once more."""
    return torch.empty(array.shape, dtype=dtype, device=device).copy_(torch.from_numpy(array), non_blocking=True)


def _array(tensor: Tensor) -> Any:
    return tensor.cpu().numpy()
