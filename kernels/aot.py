"""Compile the kernels ahead of time: cubin, PTX and launch metadata for any NVIDIA generation, without a GPU.

    python -m nuwaxl.kernels.aot OUT --sm 80,90 --dtypes float16,bfloat16 --widths 320,640,1280

writes NAME.sm_NN.cubin, NAME.sm_NN.ptx and kernels.json, which says of every kernel how to launch it. The same request
gives the same bytes. A kernel takes its arguments in the order listed, then two null pointers (Triton's scratch,
checked unused).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from nuwaxl.errors import InputError, NuwaxlError
from nuwaxl.kernels.checks import ROWS
from nuwaxl.kernels.frames import LARGE, part_of, tile_of

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
FORMAT = "nuwaxl-kernels"
FORMAT_VERSION = 3
KERNELS_FILE = "kernels.json"
_POINTERS = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}
_SCALARS = ("pixels", "values")
_HIDDEN = ("global_scratch_size", "profile_scratch_size")


@dataclass(frozen=True)
class Request:
    """One kernel for one width and type; fields that a kernel does not have are left alone."""

    kernel: str
    dtype: torch.dtype
    length: int = 16
    channels: int = 320
    heads: int = 8
    taps: int = 3
    branches: int = 1
    groups: int = 32
    eps: float = 1e-5
    part: int = 0  # pixels: of a group norm's parts of frames, or of the tile that holds one

    @property
    def name(self) -> str:
        """Unique among requests, and the beginning of a file name. engine/csrc/onnxruntime makes the same names of the
        tensors that it meets."""
        frames, part = (f"L{self.length}", f"c{self.channels}"), f"p{self.part}"
        attention, convolution = (*frames, f"h{self.heads}"), (*frames, f"k{self.taps}")
        groups = (*frames, f"g{self.groups}")
        norm = (*groups, f"e{self.eps:g}")
        parts = {
            "temporal_attention": attention,
            "temporal_attention_backward": attention,
            "temporal_conv": convolution,
            "temporal_conv_injection": (*convolution, f"n{self.branches}"),
            "group_norm": norm,
            "group_norm_silu": norm,
            "group_norm_held": (*norm, part),
            "group_norm_silu_held": (*norm, part),
            "group_norm_of_parts": (*norm, part),
            "group_norm_silu_of_parts": (*norm, part),
            "group_norm_statistics": (*groups, part),
            "guided_update": (),
        }[self.kernel]
        return "-".join((self.kernel, *parts, str(self.dtype).removeprefix("torch.")))


def requests(
    dtypes: Iterable[torch.dtype],
    widths: Iterable[int] = (320, 640, 1280),
    *,
    length: int = 16,
    heads: int = 8,
    taps: int = 3,
    groups: int = 32,
    pixels: Iterable[int] = (1024, 256, 64, 16),
) -> list[Request]:
    """Every kernel at every width, group norm's for frames of `pixels` and for larger ones in parts; the defaults are
    sd15's at 256 px."""
    by_width = (
        "temporal_attention",
        "temporal_attention_backward",
        "temporal_conv",
        "temporal_conv_injection",
        "group_norm_silu",
    )
    found, sizes = [], (*pixels, LARGE + 1)
    for dtype in dtypes:
        found += [
            Request(kernel, dtype, length, width, heads, taps, groups=groups) for width in widths for kernel in by_width
        ]
        for width in widths:
            norm = Request("group_norm_silu", dtype, length, width, groups=groups)
            for size in sizes:
                found += norm_requests(norm, size)
        found.append(Request("guided_update", dtype))
    return found


def norm_requests(norm: Request, pixels: int) -> list[Request]:
    """The kernels that frames of `pixels` go by, `norm` being the one that walks them."""
    if tile := tile_of(pixels, norm.channels, norm.groups):
        return [replace(norm, kernel=f"{norm.kernel}_held", part=tile)]
    if part := part_of(pixels):
        # Statistics are the same whatever becomes of them.
        statistics = replace(norm, kernel="group_norm_statistics", eps=0.0, part=part)
        return [statistics, replace(norm, kernel=f"{norm.kernel}_of_parts", part=part)]
    return [norm]


def check_architectures(architectures: Iterable[int]) -> None:
    """Refuse an SM number that the kernels are not compiled for.

    Raises:
        InputError: naming those that are.
    """
    unknown = sorted(set(architectures) - set(ARCHITECTURES))
    if unknown:
        raise InputError(
            expected=f"--sm numbers among {','.join(map(str, ARCHITECTURES))}",
            found=",".join(map(str, unknown)),
            fix="leave out the others",
        )


def compile_kernels(asked: Iterable[Request], architectures: Iterable[int], out: Path) -> Path:
    """Write NAME.sm_NN.{cubin,ptx} and kernels.json into `out`; returns the path of the latter.

    Needs triton, imported without TRITON_INTERPRET. Raises InputError for an unknown architecture, NuwaxlError when a
    kernel wants scratch memory, which its launchers do not give.
    """
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise InputError(
            expected="triton's compiler", found="TRITON_INTERPRET=1", fix="run this in a process without the variable"
        )
    check_architectures(architectures)
    # Line numbers would put the paths of this machine into the binaries.
    os.environ["TRITON_DISABLE_LINE_INFO"] = "1"
    import triton

    out.mkdir(parents=True, exist_ok=True)
    wanted = sorted(set(asked), key=lambda request: request.name)
    entries = [
        _compile(request, architecture, out) for architecture in sorted(set(architectures)) for request in wanted
    ]
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "triton": triton.__version__,
        "grid": "axis 0: batch * fixed * ceil(items * per_item / block), without the last factor where block is 0",
        "kernels": entries,
    }
    path = out / KERNELS_FILE
    path.write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    return path


def _specialise(request: Request, architecture: int) -> Any:
    """The same specialisation that the launchers use when they compile on the spot."""
    from nuwaxl.kernels.triton import group_norm, sampler, temporal_attention, temporal_conv

    head_dim = request.channels // request.heads
    if request.kernel.startswith("temporal_attention"):
        backward = request.kernel.endswith("backward")
        return temporal_attention.specialise(request.length, request.heads, head_dim, request.dtype, backward=backward)
    if request.kernel.startswith("temporal_conv"):
        branches = request.branches if request.kernel.endswith("injection") else 0
        return temporal_conv.specialise(
            request.length, request.channels, request.taps, request.dtype, branches=branches, sm=architecture
        )
    if request.kernel.endswith("held"):
        return group_norm.specialise_held(
            request.length, request.channels, request.part, request.groups, request.eps, silu="silu" in request.kernel
        )
    if request.part:
        of_parts, norm = group_norm.specialise_parts(
            request.length, request.channels, request.part, request.groups, request.eps, silu="silu" in request.kernel
        )
        return of_parts if request.kernel == "group_norm_statistics" else norm
    if request.kernel.startswith("group_norm"):
        silu = request.kernel.endswith("silu")
        return group_norm.specialise(request.length, request.channels, request.groups, request.eps, silu=silu)
    return sampler.specialise()


def _compile(request: Request, architecture: int, folder: Path) -> dict[str, Any]:
    """Compile one kernel for one architecture into `folder`; its entry in kernels.json."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    specialisation = _specialise(request, architecture)
    names = specialisation.kernel.arg_names
    signature = {}
    for name in names:
        if name in specialisation.constants:
            signature[name] = "constexpr"
        elif name in _SCALARS:
            signature[name] = "i32"
        else:
            wide = name in specialisation.float32_arguments
            signature[name] = _POINTERS[torch.float32 if wide else request.dtype]
    # Every pointer is promised to be 16-byte aligned but those to rows of a few floats.
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if signature[name].startswith("*") and name not in ROWS
    }
    constants = {(names.index(name),): value for name, value in specialisation.constants.items()}
    source = ASTSource(specialisation.kernel, signature, constants, aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=specialisation.options)

    metadata = compiled.metadata
    scratch = {name: getattr(metadata, name, 0) or 0 for name in _HIDDEN}
    if any(scratch.values()):
        raise NuwaxlError(f"{request.name} for sm_{architecture} wants scratch memory ({scratch}); none is given")
    files = {}
    for kind, content in (("cubin", compiled.asm["cubin"]), ("ptx", compiled.asm["ptx"].encode())):
        path = folder / f"{request.name}.sm_{architecture}.{kind}"
        path.write_bytes(content)
        files[kind] = {
            "file": path.name,
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
    return {
        "name": request.name,
        "kernel": request.kernel,
        "sm": architecture,
        "entry": metadata.name,
        "arguments": [
            {"name": name, "type": kind, "aligned": 16 if (names.index(name),) in aligned else 1}
            for name, kind in signature.items()
            if kind != "constexpr"
        ],
        "hidden_null_pointers": len(_HIDDEN),
        "constants": dict(specialisation.constants),
        "grid": asdict(specialisation.grid),
        "num_warps": metadata.num_warps,
        "shared_bytes": metadata.shared,
        "files": files,
    }


def requests_to_json(asked: Iterable[Request]) -> list[dict[str, Any]]:
    """For `--requests`."""
    return [{**asdict(request), "dtype": str(request.dtype).removeprefix("torch.")} for request in asked]


def _requests_from_json(path: Path) -> list[Request]:
    tables = json.loads(path.read_text())
    return [Request(**{**table, "dtype": _dtypes(table["dtype"])[0]}) for table in tables]


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _dtypes(text: str) -> list[torch.dtype]:
    known = {str(dtype).removeprefix("torch."): dtype for dtype in _POINTERS}
    unknown = [name for name in text.split(",") if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"expected names among {', '.join(known)}; found {', '.join(unknown)}")
    return [known[name] for name in text.split(",")]


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module."""
    parser = argparse.ArgumentParser(prog="python -m nuwaxl.kernels.aot", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--sm", type=_numbers, default=list(ARCHITECTURES), help="compute capabilities without the dot")
    parser.add_argument("--dtypes", type=_dtypes, default="float16,bfloat16", help="of float16, bfloat16, float32")
    parser.add_argument("--widths", type=_numbers, default="320,640,1280", help="channels of the levels")
    parser.add_argument("--length", type=int, default=16, help="frames a segment, L")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--groups", type=int, default=32, help="of group norm")
    parser.add_argument("--pixels", type=_numbers, default="1024,256,64,16", help="of the frames of group norm")
    parser.add_argument("--requests", type=Path, metavar="FILE", help="JSON that lists the kernels instead")
    options = parser.parse_args(arguments)
    sizes = {name: getattr(options, name) for name in ("length", "heads", "groups", "pixels")}
    try:
        asked = (
            requests(options.dtypes, options.widths, **sizes)
            if options.requests is None
            else _requests_from_json(options.requests)
        )
        path = compile_kernels(asked, options.sm, options.out)
    except NuwaxlError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print(path)


if __name__ == "__main__":
    main()
