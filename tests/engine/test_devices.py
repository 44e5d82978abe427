"""Device lists."""

import pytest

from nuwaxl.engine.devices import available_cores, parse_devices
from nuwaxl.errors import InputError


@pytest.mark.parametrize(
    ("devices", "workers"), [("cpu", 1), ("cpu:1", 1), ("cpu:2", 2), ("cpu:1,cpu:1", 2), ("cpu, cpu:2", 3)]
)
def test_a_list_gives_its_workers_which_share_the_cores(devices: str, workers: int) -> None:
    found = parse_devices(devices)
    assert [worker.name for worker in found] == [f"cpu#{i}" for i in range(workers)]
    assert all(worker.threads == max(1, available_cores() // workers) for worker in found)
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


def test_a_gpu_named_twice_is_refused() -> None:
    with pytest.raises(InputError, match="every GPU once; found cuda,cuda:0"):
        parse_devices("cuda,cuda:0")


def test_no_worker_and_very_many_are_refused() -> None:
    with pytest.raises(InputError, match="at least one worker"):
        parse_devices("cpu:0")
    with pytest.raises(InputError, match="at most 64"):
        parse_devices("cpu:1000000000000")
