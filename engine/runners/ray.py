"""A runner whose work is done by a Ray actor, on whatever machine of a cluster that is.

Latents and state tensors stay in the actor between the steps. What travels is what begins (noise, prompts, conditions),
what is finished (latents, decoded frames) and a few numbers a step; Ray puts what is large into its object store, from
where the other side reads it in place.
"""

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nuwaxl import __version__
from nuwaxl.engine.bundle_copies import kept_bundle, write_bundle
from nuwaxl.engine.devices import Worker, processor
from nuwaxl.engine.runners.base import Denoising, Float32, Segments, UInt8
from nuwaxl.engine.runners.onnxruntime import OnnxRuntimeRunner
from nuwaxl.errors import DeviceLost, InputError


@dataclass(frozen=True)
class Host:
    """Where an actor runs: its process, its processor and its version of nuwaxl."""

    pid: int
    processor: str
    nuwaxl: str


class RunnerActor:
    """The other side of a RayRunner: an OnnxRuntimeRunner in the actor's process.

    It has one batch under way, the last that was started; batches are numbered, so that no other is moved by mistake.
    """

    def __init__(self) -> None:
        self._runner: OnnxRuntimeRunner | None = None
        self._denoising: Denoising | None = None
        self._number = -1

    def host(self) -> Host:
        """Where this is."""
        return Host(os.getpid(), processor(), __version__)

    def open(self, sha256: str, files: Mapping[str, Any] | None, worker: Worker) -> bool:
        """Load the bundle from the copy that this machine keeps, or make one of `files`, references to the content of
        each. False if there is neither."""
        bundle = kept_bundle(sha256)
        if bundle is None:
            if files is None:
                return False
            bundle = write_bundle(sha256, files, load_ray().get)
        self._runner = OnnxRuntimeRunner(bundle, worker)
        return True

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the runner."""
        return getattr(self._opened, method)(*arguments)

    def start(self, number: int, segments: Segments) -> None:
        """Begin a batch; the one before is dropped."""
        self._number, self._denoising = number, None  # the old one is freed before the new one is made
        self._denoising = self._opened.start(segments)

    def move(self, number: int, method: str, *arguments: Any) -> Any:
        """Call a method of the batch under way."""
        if number != self._number or self._denoising is None:
            raise ValueError(f"expected batch {self._number}, the last that was started; found batch {number}")
        return getattr(self._denoising, method)(*arguments)

    @property
    def _opened(self) -> OnnxRuntimeRunner:
        assert self._runner is not None
        return self._runner


class RayRunner:
    """A runner in an actor (see Runner). It has one batch under way: starting another gives up the one before.

    Args:
        actor: the handle of a RunnerActor that has opened the bundle.
        where: what messages call it.
        on_close: called once, when the actor is gone.
    """

    def __init__(self, actor: Any, where: str, on_close: Callable[[], None]) -> None:
        self._actor = actor
        self._where = where
        self._on_close = on_close
        self._lost: DeviceLost | None = None
        self._batches = 0
        self._closed = False

    def encode_text(self, tokens: NDArray[np.int64]) -> Float32:
        """See Runner.encode_text."""
        prompt: Float32 = self.ask("call", "encode_text", tokens)
        return prompt

    def start(self, segments: Segments) -> "RayDenoising":
        """See Runner.start."""
        self._batches += 1
        self.ask("start", self._batches, segments)
        return RayDenoising(self, self._batches)

    def decode(self, latents: Float32) -> UInt8:
        """See Runner.decode."""
        video: UInt8 = self.ask("call", "decode", latents)
        return video

    def encode(self, video: UInt8) -> Float32:
        """See Runner.encode."""
        latents: Float32 = self.ask("call", "encode", video)
        return latents

    def close(self) -> None:
        """See Runner.close. The actor's process ends."""
        if not self._closed:
            self._closed = True
            load_ray().kill(self._actor)
            self._on_close()

    def ask(self, method: str, *arguments: Any) -> Any:
        """Call a method of the actor and wait for what it returns.

        Raises:
            DeviceLost: the actor, its node or what it returned is gone; once so, always so.
            Exception: whatever the method raised.
        """
        if self._lost is not None:
            raise self._lost
        try:
            return answer(getattr(self._actor, method).remote(*arguments), self._where)
        except DeviceLost as error:
            self._lost = error
            raise


class RayDenoising:
    """A batch under way in an actor (see Denoising)."""

    def __init__(self, runner: RayRunner, number: int) -> None:
        self._runner = runner
        self._number = number

    def step(
        self, timestep: NDArray[np.int64], coefficients: Float32, guidance: Float32, noise: Float32 | None
    ) -> None:
        """See Denoising.step."""
        self._runner.ask("move", self._number, "step", timestep, coefficients, guidance, noise)

    def latents(self, slots: Sequence[int]) -> Float32:
        """See Denoising.latents."""
        latents: Float32 = self._runner.ask("move", self._number, "latents", list(slots))
        return latents

    def join(self, segments: Segments) -> None:
        """See Denoising.join."""
        self._runner.ask("move", self._number, "join", segments)

    def keep(self, slots: Sequence[int]) -> None:
        """See Denoising.keep."""
        self._runner.ask("move", self._number, "keep", list(slots))


def answer(reference: Any, where: str) -> Any:
    """What a call of an actor returns; `where` is what messages call the actor.

    Raises:
        DeviceLost: the actor, its node or what it returned is gone.
        Exception: whatever the call raised.
    """
    ray = load_ray()
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DeviceLost(f"expected {where} to answer; found it gone: {reason}") from error


def load_ray() -> ModuleType:
    """The ray module, imported only when somebody asks for a cluster.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise InputError(
            expected="the package ray, for devices of a cluster", found=str(error), fix="pip install 'nuwaxl[ray]'"
        ) from error
