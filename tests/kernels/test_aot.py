"""Ahead-of-time compilation, as the command does it: in a process of its own, where triton is no interpreter."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

from nuwaxl.errors import InputError, NuwaxlError
from nuwaxl.kernels import aot
from nuwaxl.kernels.aot import ARCHITECTURES, Request, compile_kernels, requests, requests_to_json
from nuwaxl.kernels.frames import part_of


def build(out: Path, cache: Path, seed: int = 0) -> dict:
    """Every kernel at one small width. `seed` is of the order in which Python's sets are walked."""
    options = ("--sm", "80,90", "--dtypes", "float16", "--widths", "64", "--heads", "2", "--pixels", "1000")
    return run_aot(out, cache, *options, seed=seed)


def write_requests(folder: Path, asked: list[Request]) -> str:
    file = folder / "requests.json"
    file.write_text(json.dumps(requests_to_json(asked)))
    return str(file)


def run_aot(out: Path, cache: Path, *options: str, seed: int = 0) -> dict:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TRITON_")}
    result = subprocess.run(
        [sys.executable, "-m", "nuwaxl.kernels.aot", str(out), *options],
        env={**environment, "TRITON_CACHE_DIR": str(cache), "PYTHONHASHSEED": str(seed)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(Path(result.stdout.strip()).read_text())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    root = tmp_path_factory.mktemp("kernels")
    return root / "out", build(root / "out", root / "cache")


def test_every_kernel_is_there_for_every_architecture(built: tuple[Path, dict]) -> None:
    _, manifest = built
    expected = {request.name for request in requests([torch.float16], [64], heads=2, pixels=[1000])}
    assert len(expected) == 9
    assert "group_norm_silu_held-L16-c64-g32-e1e-05-p1024-float16" in expected
    for sm in (80, 90):
        assert {entry["name"] for entry in manifest["kernels"] if entry["sm"] == sm} == expected


def test_the_metadata_is_that_of_the_files(built: tuple[Path, dict]) -> None:
    out, manifest = built
    for entry in manifest["kernels"]:
        cubin, ptx = (out / entry["files"][kind]["file"] for kind in ("cubin", "ptx"))
        assert cubin.read_bytes().startswith(b"\x7fELF")
        assert hashlib.sha256(cubin.read_bytes()).hexdigest() == entry["files"]["cubin"]["sha256"]
        text = ptx.read_text()
        assert f".target sm_{entry['sm']}" in text
        assert f".visible .entry {entry['entry']}(" in text
        parameters = text.split(".entry", 1)[1].split(")", 1)[0].count(".param")
        assert parameters == len(entry["arguments"]) + entry["hidden_null_pointers"]
        assert f".reqntid {32 * entry['num_warps']}" in text
        assert str(Path.cwd()) not in text


def test_a_norm_of_large_frames_is_two_kernels_that_share_the_statistics(built: tuple[Path, dict]) -> None:
    _, manifest = built
    entries = {entry["name"]: entry for entry in manifest["kernels"] if entry["sm"] == 90}
    # engine/csrc/onnxruntime makes the same names and passes the arguments in this order.
    statistics = entries["group_norm_statistics-L16-c64-g32-p256-float16"]
    norm = entries["group_norm_silu_of_parts-L16-c64-g32-e1e-05-p256-float16"]
    assert [(a["name"], a["type"]) for a in statistics["arguments"]] == [
        ("x", "*fp16"), ("pixels", "i32"), ("statistics", "*fp32"),
    ]  # fmt: skip
    assert [(a["name"], a["type"]) for a in norm["arguments"]] == [
        ("x", "*fp16"), ("weight", "*fp16"), ("bias", "*fp16"), ("statistics", "*fp32"), ("pixels", "i32"),
        ("out", "*fp16"),
    ]  # fmt: skip
    assert [part_of(pixels) for pixels in (1023, 1024, 1025, 16384, 16385, 65536)] == [0, 256, 256, 256, 512, 1024]
    assert {a["aligned"] for entry in (statistics, norm) for a in entry["arguments"] if a["type"] != "i32"} == {16}
    assert statistics["grid"] == norm["grid"] == {"fixed": 16, "per_item": 1, "block": 256}


def test_half_precision_products_use_the_tensor_cores(built: tuple[Path, dict]) -> None:
    out, manifest = built
    for entry in manifest["kernels"]:
        if entry["kernel"].startswith("temporal"):
            assert "mma" in (out / entry["files"]["ptx"]["file"]).read_text(), entry["name"]


def test_a_second_build_with_an_empty_cache_gives_the_same_bytes(built: tuple[Path, dict], tmp_path: Path) -> None:
    out, _ = built
    build(tmp_path / "again", tmp_path / "cache", seed=1)
    files = sorted(path.name for path in (tmp_path / "again").iterdir())
    assert files == sorted(path.name for path in out.iterdir())
    assert len(files) == 2 * 18 + 1  # and kernels.json
    for file in files:
        assert (tmp_path / "again" / file).read_bytes() == (out / file).read_bytes(), file


def test_float32_products_are_not_rounded_to_tf32(tmp_path: Path) -> None:
    kernels = ("temporal_attention", "temporal_attention_backward", "temporal_conv_injection")
    asked = [Request(kernel, torch.float32, length=4, channels=16, heads=1) for kernel in kernels]
    manifest = run_aot(
        tmp_path / "out", tmp_path / "cache", "--requests", write_requests(tmp_path, asked), "--sm", "90"
    )
    for entry in manifest["kernels"]:
        ptx = (tmp_path / "out" / entry["files"]["ptx"]["file"]).read_text()
        assert "fma.rn.f32" in ptx, entry["name"]
        assert "tf32" not in ptx, entry["name"]


def test_the_rows_of_the_update_are_float32_anywhere_in_memory(built: tuple[Path, dict]) -> None:
    _, manifest = built
    entries = [entry for entry in manifest["kernels"] if entry["kernel"] == "guided_update"]
    assert len(entries) == 2
    for entry in entries:
        assert [(a["name"], a["type"], a["aligned"]) for a in entry["arguments"]] == [
            *((name, "*fp16", 16) for name in ("x", "history", "noise", "cond", "uncond")),
            # A batch may be any part of them: promised to be aligned, they would be read from elsewhere.
            *((name, "*fp32", 1) for name in ("coefficients", "guidance")),
            ("values", "i32", 1),
            *((name, "*fp16", 16) for name in ("x_next", "x0")),
        ]


# What does not grow with the batch, or by a few floats a segment.
SMALL = {"weight", "bias", "coefficients", "guidance"}


def test_where_a_segment_begins_is_counted_in_64_bits(built: tuple[Path, dict]) -> None:
    """A batch may have more than 2^31 values. The compiler's cache has the kernels before they are optimised."""
    out, manifest = built
    arguments = {
        entry["entry"]: [a["name"] for a in entry["arguments"] if a["type"] != "i32"] for entry in manifest["kernels"]
    }
    seen: dict[str, set[str]] = {name: set() for name in arguments}
    for path in (out.parent / "cache").rglob("*.ttir"):
        code = path.read_text()
        signature = re.search(r"tt\.func public @\w+\((.*?)\) attributes", code, re.DOTALL)
        assert signature is not None
        pointers = re.findall(r"(%\w+): !tt\.ptr", signature[1])
        for name, pointer in zip(arguments[path.stem], pointers, strict=True):
            for wide, offset, kind in first_offsets(code, pointer):
                if name not in SMALL:
                    assert kind == "i64", f"{path.stem}: {name}"
                    assert wide or re.search(rf"{offset} = arith\.muli .* : i64", code), f"{path.stem}: {name}"
                seen[path.stem].add(name)
    assert {name: set(of) for name, of in arguments.items()} == seen


def first_offsets(code: str, pointer: str) -> Iterator[tuple[bool, str, str]]:
    """What is first added to an argument, itself or all lanes of a tensor: whether the latter, the value, its type."""
    for offset, kind in re.findall(rf"tt\.addptr {pointer}, (%\w+) : .*, (i\d+)", code):
        yield False, offset, kind
    for splat in re.findall(rf"(%\w+) = tt\.splat {pointer} :", code):
        for offset, kind in re.findall(rf"tt\.addptr {splat}, (%\w+) : .*, tensor<\w+x(i\d+)>", code):
            yield True, offset, kind


@pytest.mark.parametrize(
    ("dtype", "length", "width"),
    [
        (torch.float16, 64, 32),
        (torch.float16, 64, 40),
        (torch.float16, 16, 640),
        (torch.float32, 64, 32),
        # 80 s of compiling together
        pytest.param(torch.float32, 64, 40, marks=pytest.mark.slow),
        pytest.param(torch.float32, 16, 640, marks=pytest.mark.slow),
    ],
)
def test_long_segments_and_wide_heads_fit_a_small_gpus_memory(
    dtype: torch.dtype, length: int, width: int, tmp_path: Path
) -> None:
    asked = [
        Request(kernel, dtype, length=length, channels=width, heads=1)
        for kernel in ("temporal_attention", "temporal_attention_backward")
    ]
    manifest = run_aot(
        tmp_path / "out", tmp_path / "cache", "--requests", write_requests(tmp_path, asked), "--sm", "86"
    )
    assert len(manifest["kernels"]) == len(asked)
    # What a block may have on sm_86, sm_89 and sm_120.
    assert all(0 < entry["shared_bytes"] <= 99 * 1024 for entry in manifest["kernels"])


def test_a_convolutions_sums_are_a_warpgroups_on_hopper_alone(tmp_path: Path) -> None:
    asked = [Request("temporal_conv_injection", torch.bfloat16, channels=128)]
    manifest = run_aot(
        tmp_path / "out", tmp_path / "cache", "--requests", write_requests(tmp_path, asked), "--sm", "80,90"
    )
    assert {entry["sm"]: entry["num_warps"] for entry in manifest["kernels"]} == {80: 8, 90: 4}
    ptx = {entry["sm"]: (tmp_path / "out" / entry["files"]["ptx"]["file"]).read_text() for entry in manifest["kernels"]}
    assert "wgmma.mma_async" in ptx[90]


def test_the_grid_covers_every_item_once() -> None:
    from nuwaxl.kernels.triton.launch import Grid

    assert Grid(fixed=1, per_item=8, block=4).programs(batch=3, items=5) == 3 * 10
    assert Grid(fixed=3, per_item=16, block=128).programs(batch=2, items=9) == 2 * 3 * 2
    assert Grid(fixed=12).programs(batch=2, items=1000) == 24


def test_an_unknown_architecture_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(InputError, match="found 70"):
        compile_kernels([Request("guided_update", torch.float16)], [70], tmp_path)


def test_every_architecture_that_is_offered_is_one_that_triton_compiles_for(tmp_path: Path) -> None:
    asked = [Request("temporal_attention", torch.float16, length=4, channels=16, heads=1)]
    every = ",".join(map(str, ARCHITECTURES))
    assert every == "80,86,89,90,100,120"
    manifest = run_aot(
        tmp_path / "out", tmp_path / "cache", "--requests", write_requests(tmp_path, asked), "--sm", every
    )
    assert [entry["sm"] for entry in manifest["kernels"]] == list(ARCHITECTURES)
    for entry in manifest["kernels"]:
        cubin, ptx = (tmp_path / "out" / entry["files"][kind]["file"] for kind in ("cubin", "ptx"))
        assert f".target sm_{entry['sm']}" in ptx.read_text()
        assert cubin.read_bytes().startswith(b"\x7fELF")


def test_threads_and_shared_memory_are_those_that_triton_tells(built: tuple[Path, dict]) -> None:
    out, manifest = built
    told = []
    for path in (out.parent / "cache").rglob("*.json"):
        metadata = json.loads(path.read_text())
        if "shared" in metadata:  # others list the files of one kernel
            told.append((metadata["name"], metadata["target"]["arch"], metadata["num_warps"], metadata["shared"]))
    found = [(each["entry"], each["sm"], each["num_warps"], each["shared_bytes"]) for each in manifest["kernels"]]
    assert sorted(found) == sorted(told)
    assert max(shared for *_, shared in found) > 10_000


def test_a_kernel_that_wants_scratch_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its two last arguments are null pointers wherever it is launched."""
    metadata = SimpleNamespace(global_scratch_size=64, profile_scratch_size=0)
    monkeypatch.setattr("triton.compile", lambda *_, **__: SimpleNamespace(metadata=metadata))
    monkeypatch.setattr("triton.compiler.ASTSource", lambda *_: None)
    with pytest.raises(NuwaxlError, match=r"guided_update-float16 for sm_90 wants scratch memory .*64"):
        aot._compile(Request("guided_update", torch.float16), 90, tmp_path)
    assert not list(tmp_path.iterdir())
