"""A runner on PyTorch: the bundle's checkpoint as torch modules, CUDA graphs over them on a GPU."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nuwaxl.engine.bundle import Bundle
from nuwaxl.engine.runners.base import Float32, Segments, UInt8
from nuwaxl.engine.runners.slots import bucket
from nuwaxl.errors import DeviceLost
from nuwaxl.export.model import load_bundled
from nuwaxl.export.torch_runner.device import TorchDevice
from nuwaxl.export.torch_runner.graphs import Replayed
from nuwaxl.export.torch_runner.layers import Upsampling
from nuwaxl.export.torch_runner.slots import Slots
from nuwaxl.export.torch_runner.step import Denoiser, Prepare, Step
from nuwaxl.train.networks.mtd import MTD
from nuwaxl.train.networks.text import CLIPText
from nuwaxl.train.networks.tklvae import TKLVAE

_P = ParamSpec("_P")
_R = TypeVar("_R")
# What torch raises when a device is of no more use; older versions raise RuntimeError alone.
_LOST: tuple[type[Exception], ...] = tuple(filter(None, (getattr(torch, "AcceleratorError", None),)))


class VideoGraphs(nn.Module):
    """Decoding and encoding, with the latents' mean and scale in float32 whatever the layers compute in."""

    def __init__(self, tklvae: TKLVAE, dtype: torch.dtype) -> None:
        super().__init__()
        shift, scale = (t.detach().float().clone()[:, None, None] for t in (tklvae.latent_shift, tklvae.latent_scale))
        self.tklvae = tklvae.to(dtype=dtype)
        for block in tklvae.decoder.up_blocks:
            block.upsamplers = nn.ModuleList(Upsampling(upsample) for upsample in block.upsamplers)
        self.dtype = dtype
        self.shift, self.scale = nn.Parameter(shift, requires_grad=False), nn.Parameter(scale, requires_grad=False)

    def forward(self, latents: Tensor) -> Tensor:
        """Latents (b, L, c, h, w) -> video uint8 (b, L, H, W, C)."""
        video = self.tklvae.reconstruct((latents / self.scale + self.shift).to(self.dtype)).float()
        return ((video.permute(0, 1, 3, 4, 2) + 1.0) * 127.5).clamp(0.0, 255.0).round().to(torch.uint8)

    def encode(self, video: Tensor) -> Tensor:
        """Video uint8 (b, L, H, W, C) -> latents (b, L, c, h, w), the posterior's mean."""
        mean, _ = self.tklvae.moments((video.permute(0, 1, 4, 2, 3).float() / 127.5 - 1.0).to(self.dtype))
        return (mean.float() - self.shift) * self.scale


def _on_device(method: Callable[Concatenate[TorchRunner, _P], _R]) -> Callable[Concatenate[TorchRunner, _P], _R]:
    """Run a method on the runner's device and stream, without gradients; a device that fails for good is lost."""

    @functools.wraps(method)
    def on_device(self: TorchRunner, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            if self._stream is not None:
                stack.enter_context(torch.cuda.device(self._device.device))
                stack.enter_context(torch.cuda.stream(self._stream))
            try:
                return method(self, *args, **kwargs)
            except _LOST as error:
                raise DeviceLost(
                    f"expected {self._device.device} to work; found {type(error).__name__}: {error}"
                ) from error

    return on_device


class TorchRunner:
    """The networks in one type on one device (see Runner). The text encoder stays in float32, as the latents do."""

    def __init__(self, text: CLIPText, mtd: MTD, tklvae: TKLVAE, device: TorchDevice) -> None:
        """Takes the networks over; they are moved and cast."""
        place = device.device
        self._device = device
        self.later = device.on_cuda  # see DecodesLater
        self._stream = torch.cuda.Stream(place) if device.on_cuda else None
        self._copies = torch.cuda.Stream(place) if device.on_cuda else None
        if device.on_cuda:
            torch.backends.cudnn.benchmark = True  # the whole process's, as all of torch's settings
            if device.dtype == torch.float32:
                torch.backends.cudnn.allow_tf32 = False
        self._text = text.to(device=place, dtype=torch.float32).eval()
        self._video = VideoGraphs(tklvae, device.dtype).to(place, memory_format=torch.channels_last).eval()
        # The operators are inside, so the layout is theirs; convolutions keep their weights in it too.
        denoiser = Denoiser(mtd.to(dtype=device.dtype)).to(place).eval()
        for module in mtd.modules():
            if isinstance(module, nn.Conv2d):
                module.to(memory_format=torch.channels_last)
        self._prepare = Replayed(Prepare(denoiser), device)
        self._alone = Step(denoiser)
        step: Any = self._alone
        decode: Any = self._video
        if device.compiled:
            step = torch.compile(step, fullgraph=True)
            decode = torch.compile(decode, fullgraph=True, dynamic=False)
        self._step = step
        self._decode: Replayed[Tensor] = Replayed(decode, device)
        self._pool: list[Slots] = []  # of batches that are over: their memory fits, their graphs are captured
        if device.on_cuda:
            torch.cuda.synchronize(place)  # the networks were moved on another stream than the runner's

    @classmethod
    def open(cls, bundle: Bundle, device: TorchDevice) -> TorchRunner:
        """The runner of a bundle that carries its checkpoint.

        Raises:
            InputError: the bundle has none.
        """
        model = load_bundled(bundle)
        return cls(model.text, model.mtd, model.tklvae, device)

    @_on_device
    def encode_text(self, tokens: NDArray[np.int64]) -> Float32:
        """See Runner.encode_text."""
        return _array(self._text(self._tensor(tokens)))

    def start(self, segments: Segments) -> TorchDenoising:
        """See Runner.start."""
        slots = self._pool.pop() if self._pool else Slots(self._step, self._alone, self._device)
        slots.count = 0
        denoising = TorchDenoising(self, slots)
        weakref.finalize(denoising, self._pool.append, slots).atexit = False
        denoising.join(segments)
        return denoising

    def rows(self, count: int) -> int:
        """See Padded. On the CPU nothing is captured, and so nothing filled up."""
        return bucket(count) if self._device.on_cuda else count

    @_on_device
    def take(self, slots: Slots, segments: Segments) -> None:
        """Prepare segments and add them to a batch, one by one."""
        arrays = (segments.x, *segments.given.values())
        count = slots.count
        try:
            for x, *inputs in zip(*(self._tensor(array).split(1) for array in arrays), strict=True):
                slots.add(x, self._prepare(*inputs))
        except BaseException:
            slots.count = count  # the others go on as if these had never come
            raise

    @_on_device
    def step(
        self,
        slots: Slots,
        timestep: NDArray[np.int64],
        coefficients: Float32,
        guidance: Float32,
        noise: Float32 | None,
    ) -> None:
        """Queue a step of a batch, when the one before has ended: this returns while the device is at it."""
        if self._stream is not None:
            self._stream.synchronize()
        rows = (self._tensor(array) for array in (timestep.astype(np.float32), coefficients, guidance))
        slots.move(*rows, None if noise is None else self._tensor(noise))

    @_on_device
    def latents(self, slots: Slots, wanted: Sequence[int]) -> Float32:
        """Of some slots of a batch."""
        return _array(slots.x[list(wanted)])

    @_on_device
    def keep(self, slots: Slots, wanted: Sequence[int]) -> None:
        """Drop all but these slots of a batch."""
        slots.keep(wanted)

    def decode(self, latents: Float32) -> UInt8:
        """See Runner.decode."""
        return self.begin_decode(latents)()

    @_on_device
    def begin_decode(self, latents: Float32) -> Callable[[], UInt8]:
        """See DecodesLater."""
        # One window at a time, which is what a render asks for; the next is written where this one was.
        video = torch.cat([self._decode(one).clone() for one in self._tensor(latents).split(1)])
        if self._stream is None or self._copies is None:
            return functools.partial(_array, video)
        host = torch.empty(video.shape, dtype=video.dtype, pin_memory=True)
        self._copies.wait_stream(self._stream)
        with torch.cuda.stream(self._copies):
            host.copy_(video, non_blocking=True)
            video.record_stream(self._copies)
            landed = self._copies.record_event()
        return functools.partial(self._landed, landed, host)

    @_on_device
    def _landed(self, landed: torch.cuda.Event, host: Tensor) -> UInt8:
        landed.synchronize()
        return _array(host)

    @_on_device
    def encode(self, video: UInt8) -> Float32:
        """See Runner.encode."""
        return _array(self._video.encode(self._tensor(video)))

    def close(self) -> None:
        """See Runner.close."""
        self._pool.clear()
        self._text = self._video = self._decode = self._prepare = None  # type: ignore[assignment]
        self._step = self._alone = None  # type: ignore[assignment]

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device.device)


class TorchDenoising:
    """A batch under way on a TorchRunner (see Denoising)."""

    def __init__(self, runner: TorchRunner, slots: Slots) -> None:
        self._runner = runner
        self._slots = slots

    def step(
        self, timestep: NDArray[np.int64], coefficients: Float32, guidance: Float32, noise: Float32 | None
    ) -> None:
        """See Denoising.step."""
        self._runner.step(self._slots, timestep, coefficients, guidance, noise)

    def latents(self, slots: Sequence[int]) -> Float32:
        """See Denoising.latents."""
        return self._runner.latents(self._slots, slots)

    def join(self, segments: Segments) -> None:
        """See Denoising.join."""
        self._runner.take(self._slots, segments)

    def keep(self, slots: Sequence[int]) -> None:
        """See Denoising.keep."""
        self._runner.keep(self._slots, slots)


def _array(tensor: Tensor) -> Any:
    return tensor.cpu().numpy()
