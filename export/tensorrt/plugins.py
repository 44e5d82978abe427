"""The temporal kernels as ahead-of-time plugins of TensorRT (`tensorrt.plugin`, TensorRT 10.15 or newer).

TensorRT takes the kernel's PTX and how to launch it into the engine, which then needs no Python and no library of ours.
It calls a kernel with the inputs, the scalars and the outputs in this order, which is the order of our kernels. The
Python package of TensorRT 11.4 takes these functions and gets from them what it should; **not yet run**.
"""

# No `from __future__ import annotations`: `tensorrt.plugin` reads the annotations themselves.

from typing import Any

from nuwaxl.export.tensorrt.kernels import DOMAIN, Kernel, Kernels

# TensorRT's names of types as Triton has them.
_TYPES = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16"}
# And as `AutoTuneCombination` has them.
_TUNED = {"FLOAT": "FP32", "HALF": "FP16", "BF16": "BF16"}


def register(trtp: Any, kernels: Kernels, nodes: set[str]) -> None:
    """Register the plugins of these kinds of nodes, once a process.

    Args:
        trtp: the module `tensorrt.plugin`.
    """
    if "TemporalAttention" in nodes:
        _attention(trtp, kernels)
    if "TemporalConv" in nodes:
        _convolution(trtp, kernels)
    if "TemporalConvInjection" in nodes:
        _injection(trtp, kernels)


def _attention(trtp: Any, kernels: Kernels) -> None:
    name = f"{DOMAIN}::TemporalAttention"
    desc, answer = trtp.TensorDesc, _answer(trtp)

    @trtp.register(name)
    def describe(qkv: desc, heads: int) -> desc:
        """qkv (b, L, p, 3c) -> (b, L, p, c)."""
        shape = qkv.shape_expr
        return trtp.from_shape_expr((shape[0], shape[1], shape[2], shape[3] // 3), qkv.dtype)

    @trtp.autotune(name)
    def tune(qkv: desc, outputs: tuple[desc]) -> list[trtp.AutoTuneCombination]:
        return [_same_types(trtp, qkv, 2)]

    @trtp.aot_impl(name)
    def implement(qkv: desc, heads: int, outputs: tuple[desc], tactic: int) -> answer:
        length, channels = _size(qkv, 1), _size(qkv, 3) // 3
        kernel = kernels.find("TemporalAttention", _dtype(qkv), LENGTH=length, HEADS=heads, HEAD_DIM=channels // heads)
        return _launch(trtp, kernel, qkv)


def _convolution(trtp: Any, kernels: Kernels) -> None:
    name = f"{DOMAIN}::TemporalConv"
    desc, answer = trtp.TensorDesc, _answer(trtp)

    @trtp.register(name)
    def describe(x: desc, weight: desc, bias: desc) -> desc:
        """x (b, L, p, c), weight (k, c, c), bias (c,) -> shape of x."""
        return x.like()

    @trtp.autotune(name)
    def tune(x: desc, weight: desc, bias: desc, outputs: tuple[desc]) -> list[trtp.AutoTuneCombination]:
        return [_same_types(trtp, x, 4)]

    @trtp.aot_impl(name)
    def implement(x: desc, weight: desc, bias: desc, outputs: tuple[desc], tactic: int) -> answer:
        sizes = {"LENGTH": _size(x, 1), "CHANNELS": _size(x, 3), "KERNEL": _size(weight, 0)}
        return _launch(trtp, kernels.find("TemporalConv", _dtype(x), **sizes), x)


def _injection(trtp: Any, kernels: Kernels) -> None:
    name = f"{DOMAIN}::TemporalConvInjection"
    desc, answer = trtp.TensorDesc, _answer(trtp)

    @trtp.register(name)
    def describe(x: desc, weight: desc, bias: desc, scale: desc, shift: desc) -> desc:
        """x (n * b, L, p, c), weight (k, c, c), bias (c,), scale and shift (b, L, p, c) -> shape of x."""
        return x.like()

    @trtp.autotune(name)
    def tune(
        x: desc, weight: desc, bias: desc, scale: desc, shift: desc, outputs: tuple[desc]
    ) -> list[trtp.AutoTuneCombination]:
        return [_same_types(trtp, x, 6)]

    @trtp.aot_impl(name)
    def implement(
        x: desc, weight: desc, bias: desc, scale: desc, shift: desc, outputs: tuple[desc], tactic: int
    ) -> answer:
        sizes = {"LENGTH": _size(x, 1), "CHANNELS": _size(x, 3), "KERNEL": _size(weight, 0)}
        branches = _size(x, 0) // _size(scale, 0)
        return _launch(trtp, kernels.find("TemporalConvInjection", _dtype(x), BRANCHES=branches, **sizes), x)


def _launch(trtp: Any, kernel: Kernel, x: Any) -> tuple[str, str, Any, Any]:
    """Name, code, launch parameters and scalars of a kernel over x (b, L, p, ..): a program a block of p, a segment."""
    shape = x.shape_expr
    launch = trtp.KernelLaunchParams()
    programs = shape[0] * kernel.fixed
    if kernel.block:
        programs = programs * trtp.cdiv(shape[2] * kernel.per_item, kernel.block)
    launch.grid_x = programs
    launch.block_x = kernel.threads
    launch.shared_mem = kernel.shared_bytes
    scalars = trtp.SymIntExprs(1)
    scalars[0] = trtp.SymInt32(shape[2])
    return kernel.entry, kernel.ptx, launch, scalars


def _answer(trtp: Any) -> Any:
    """What an implementation gives: its annotation is checked."""
    return tuple[str | bytes, str | bytes, trtp.KernelLaunchParams, trtp.SymIntExprs]


def _same_types(trtp: Any, x: Any, count: int) -> Any:
    """All tensors in the type of x, with their last axis innermost: the network is strongly typed."""
    return trtp.AutoTuneCombination(", ".join([_TUNED[x.dtype.name]] * count), "LINEAR")


def _dtype(x: Any) -> str:
    return _TYPES[x.dtype.name]


def _size(x: Any, axis: int) -> int:
    """The size of an axis: the one it has, or, where it is dynamic, that of the profile."""
    size = int(x.shape[axis])
    return int(x.shape.opt[axis]) if size == -1 else size
