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
        "cpu:" + "9" * 5000,
        "ray:" + "9" * 5000,
        None,
        2,
    ],
)
def test_an_unknown_device_is_refused_with_what_there_is(devices: object) -> None:
    with pytest.raises(InputError, match='use "cpu"'):
        parse_devices(devices)  # type: ignore[arg-type]


@pytest.mark.parametrize("devices", ["cuda", "cuda:0", "cpu,cuda:1"])
def test_a_gpu_is_refused_and_said_not_to_be_supported_yet(devices: str) -> None:
    with pytest.raises(InputError, match="GPUs are not supported in this version"):
        parse_devices(devices)


def test_no_worker_and_very_many_are_refused() -> None:
    with pytest.raises(InputError, match="at least one worker"):
        parse_devices("cpu:0")
    with pytest.raises(InputError, match="at most 64"):
        parse_devices("cpu:1000000000000")
