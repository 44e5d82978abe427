"""Device lists."""

import os
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import nuwaxl.bench.cli
import nuwaxl.engine.cli
from nuwaxl.engine import Engine, devices
from nuwaxl.engine.devices import GPU_KINDS, available_cores, check_tf32, parse_devices
from nuwaxl.engine.runners.plugins import plugin_names
from nuwaxl.errors import InputError


@pytest.fixture
def six_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.mark.parametrize(
    ("said", "cores"), [(None, 6), ("4", 4), ("1", 1), ("9", 6), ("2,1", 2), ("", 6), ("0", 6), ("-1", 6), ("x", 6)]
)
@pytest.mark.usefixtures("six_cores")
def test_the_cores_are_those_of_the_process_and_no_more_than_the_user_allows(
    monkeypatch: pytest.MonkeyPatch, said: str | None, cores: int
) -> None:
    if said is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert available_cores() == cores
    assert parse_devices("cpu")[0].threads == cores


@pytest.mark.usefixtures("six_cores")
@pytest.mark.parametrize(
    ("devices", "workers"), [("cpu", 1), ("cpu:1", 1), ("cpu:2", 2), ("cpu:1,cpu:1", 2), ("cpu, cpu:2", 3)]
)
def test_a_list_gives_its_workers_which_share_the_cores(devices: str, workers: int) -> None:
    found = parse_devices(devices)
    assert [worker.name for worker in found] == [f"cpu#{i}" for i in range(workers)]
    assert all(worker.threads == 6 // workers for worker in found)
    assert all(worker.alone == (workers == 1) for worker in found)


@pytest.mark.parametrize(
    "devices",
    [
        "",
        "gpu9",
        "cpu:",
        "cpu:x",
        "cpu:-1",
        "cpu:1.5",
        "cpu,",
        "CPU",
        "cuda:",
        "cuda:-1",
        "tensorrt-rtx:",
        "tensorrt_rtx",
        "cpu:" + "9" * 5000,
        "ray:" + "9" * 5000,
        None,
        2,
    ],
)
def test_an_unknown_device_is_refused_with_what_there_is(devices: object) -> None:
    with pytest.raises(InputError, match='use "cpu"'):
        parse_devices(devices)  # type: ignore[arg-type]


@pytest.mark.parametrize("devices", ["ray,cpu", "cpu:2,ray:3"])
def test_ray_beside_other_devices_is_refused(devices: str) -> None:
    with pytest.raises(InputError, match=rf'devices: ray alone; found "{devices}"'):
        parse_devices(devices)


def test_every_gpu_is_a_worker_beside_those_of_the_cpu() -> None:
    found = parse_devices("cuda:1,cuda,cpu:2")
    assert [(w.name, w.kind, w.index) for w in found] == [
        ("cpu#0", "cpu", 0),
        ("cpu#1", "cpu", 0),
        ("cuda:1", "cuda", 1),
        ("cuda:0", "cuda", 0),
    ]
    assert [worker.threads for worker in found[:2]] == [max(1, available_cores() // 2)] * 2
    assert not any(worker.alone for worker in found)
    assert parse_devices("cuda:7")[0].alone


def test_a_gpu_with_plans_is_named_by_its_runtime() -> None:
    found = parse_devices("tensorrt-rtx:1,tensorrt")
    assert [(w.name, w.kind, w.index) for w in found] == [
        ("tensorrt-rtx:1", "tensorrt-rtx", 1),
        ("tensorrt:0", "tensorrt", 0),
    ]


@pytest.mark.parametrize(
    ("asked", "both"),
    [
        ("cuda,cuda:0", "cuda and cuda:0"),
        ("cuda:1,cpu,tensorrt:1", "cuda:1 and tensorrt:1"),
        ("tensorrt:0,tensorrt-rtx:0", "tensorrt:0 and tensorrt-rtx:0"),
        ("torch:cuda:0/float16,cuda:0", "torch:cuda:0/float16 and cuda:0"),
        ("torch:cuda:1,torch:cuda:0,torch:cuda:1/eager", "torch:cuda:1 and torch:cuda:1/eager"),
    ],
)
def test_a_gpu_named_twice_is_refused_whatever_runs_it(asked: str, both: str) -> None:
    with pytest.raises(InputError, match=f"every GPU once; found {both}, both GPU"):
        parse_devices(asked)


@pytest.fixture
def torch_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if torch had GPUs here."""
    plugin = SimpleNamespace(processor=lambda device: device, precision=lambda device: None)
    monkeypatch.setattr(devices, "plugin_for", lambda _: plugin)


def test_different_gpus_may_be_run_by_different_runtimes(torch_gpus: None) -> None:
    found = parse_devices("torch:cuda:1,cuda:0,tensorrt:2,torch:cpu,torch:cpu")
    assert sorted(worker.name for worker in found) == [
        "cuda:0", "tensorrt:2", "torch:cpu#1", "torch:cpu#2", "torch:cuda:1#0"
    ]  # fmt: skip


@pytest.mark.parametrize("asked", ["cuda:0", "cpu,cuda:1,cuda:0"])
def test_tf32_is_for_the_cuda_provider(asked: str) -> None:
    check_tf32(asked, parse_devices(asked))


@pytest.mark.parametrize("asked", ["cpu", "tensorrt:0", "cuda:0,tensorrt-rtx:1", "cuda:0,torch:cuda:1", "ray"])
def test_tf32_is_refused_where_it_would_do_nothing(asked: str, tiny_bundle: Path, torch_gpus: None) -> None:
    with pytest.raises(InputError, match=f"TF32 for devices cuda:I; found devices {asked}; leave --tf32"):
        Engine.open(tiny_bundle, devices=asked, tf32=True)


@pytest.mark.parametrize("tool", [nuwaxl.engine.cli, nuwaxl.bench.cli])
def test_help_names_every_form_of_device(
    tool: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")  # no word is broken
    with pytest.raises(SystemExit):
        tool.main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    for form in (
        "cpu:2",
        *(f"{kind}:0" for kind in (*GPU_KINDS, *(f"{name}:cuda" for name in plugin_names()))),
        "ray:2",
    ):
        assert form in said
        assert form in " ".join((Engine.open.__doc__ or "").split())


def test_no_worker_and_very_many_are_refused() -> None:
    with pytest.raises(InputError, match="at least one worker"):
        parse_devices("cpu:0")
    with pytest.raises(InputError, match="at most 64"):
        parse_devices("cpu:1000000000000")
