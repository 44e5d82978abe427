"""What devices on a Ray cluster are made of, as far as it needs no cluster."""

import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from nuwaxl.engine import Engine
from nuwaxl.engine.bundle import Bundle, write_plans
from nuwaxl.engine.bundle_copies import kept_bundle, write_bundle
from nuwaxl.engine.bundle_schema import Plan
from nuwaxl.engine.devices import Actors, Worker, parse_devices, parse_ray
from nuwaxl.engine.plans import named
from nuwaxl.engine.runners.base import Segments
from nuwaxl.engine.runners.ray import RunnerActor
from nuwaxl.engine.runners.ray_cluster import Node, deal, needed
from nuwaxl.errors import InputError

WORKER = Worker("ray#0", threads=1, alone=True)


def nodes(*sizes: tuple[int, int]) -> list[Node]:
    """Nodes of (cpus, free) each."""
    return [Node(f"{number}", "10.0.0.1", cpus, free) for number, (cpus, free) in enumerate(sizes)]


@pytest.mark.parametrize(("devices", "count"), [("ray", None), ("ray:1", 1), (" ray:12 ", 12)])
def test_ray_is_read_with_its_number_of_actors(devices: str, count: int | None) -> None:
    assert parse_ray(devices) == Actors(count)


@pytest.mark.parametrize("devices", ["cpu", "ray,cpu", "ray:1,ray:1", "rays", "ray:", "ray:x", "ray:-1", None])
def test_other_lists_are_not_for_ray_and_ray_among_others_is_refused(devices: object) -> None:
    assert parse_ray(devices) is None  # type: ignore[arg-type]
    if devices != "cpu":
        among_others = isinstance(devices, str) and "," in devices
        with pytest.raises(InputError, match="ray alone; found" if among_others else 'alone, "ray"'):
            parse_devices(devices)  # type: ignore[arg-type]


@pytest.mark.parametrize("devices", ["ray:0", "ray:1025"])
def test_no_actor_and_very_many_are_refused(devices: str) -> None:
    with pytest.raises(InputError, match="from 1 to 1024"):
        parse_ray(devices)


@pytest.mark.parametrize(
    ("sizes", "count", "shares"),
    [
        # (node, cpus, alone)
        ([(4, 4), (0, 0), (2, 1)], None, [(0, 4, True), (2, 1, False)]),
        ([(4, 4), (2, 2)], 1, [(0, 4, True)]),
        ([(4, 4), (2, 2)], 2, [(0, 4, True), (1, 2, True)]),
        ([(4, 4), (2, 2)], 3, [(0, 2, False), (0, 2, False), (1, 2, True)]),
        ([(5, 5), (1, 1)], 3, [(0, 2, False), (0, 2, False), (1, 1, True)]),
        ([(1, 1), (1, 1)], 3, None),
        ([(4, 0)], 1, None),
        ([(4, 0)], None, None),
        ([], 1, None),
        ([], None, None),
    ],
)
def test_cpus_are_dealt_as_equally_as_can_be(
    sizes: list[tuple[int, int]], count: int | None, shares: list[tuple[int, int, bool]] | None
) -> None:
    found = deal(nodes(*sizes), count)
    assert (found and [(int(share.node.id), share.cpus, share.alone) for share in found]) == shares


@pytest.mark.parametrize("count", range(1, 20))
def test_no_node_is_given_more_than_it_has(count: int) -> None:
    found = deal(nodes((7, 6), (3, 3), (16, 10), (1, 0)), count)
    assert found is not None
    assert len(found) == count
    for node in {share.node for share in found}:
        assert sum(share.cpus for share in found if share.node == node) <= node.free
    assert all(share.cpus >= 1 for share in found)


def test_without_ray_the_error_names_the_extra(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'nuwaxl\[ray\]'"):
        Engine.open(tiny_bundle, devices="ray:2")


def test_the_engine_does_not_import_ray_until_it_is_asked_for() -> None:
    check = "import sys, nuwaxl.engine.cli, nuwaxl.engine.runners.ray_cluster; print('ray' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=120, check=False)
    assert result.stdout.split() == ["False"], result.stderr


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("NUWAXL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def contents(bundle: Bundle) -> dict[str, np.ndarray]:
    """Every file of a bundle."""
    return {path.name: np.fromfile(path, np.uint8) for path in bundle.path.iterdir()}


def test_of_many_that_bring_a_bundle_at_once_one_writes_it(cache: Path, tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    assert kept_bundle(bundle.sha256) is None
    fetched: list[int] = []

    def fetch(content: np.ndarray) -> np.ndarray:
        fetched.append(content.size)
        return content

    def write() -> None:
        assert write_bundle(bundle.sha256, contents(bundle), fetch).sha256 == bundle.sha256

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fetched) == len(list(tiny_bundle.iterdir()))
    kept = kept_bundle(bundle.sha256)
    assert kept is not None
    assert kept.manifest == bundle.manifest
    assert [path.name for path in (cache / "bundles").iterdir() if path.is_dir()] == [bundle.sha256]


def test_a_damaged_copy_is_written_again(cache: Path, tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    write_bundle(bundle.sha256, contents(bundle), lambda content: content)
    (cache / "bundles" / bundle.sha256 / "step.onnx").write_bytes(b"")
    assert kept_bundle(bundle.sha256) is None
    write_bundle(bundle.sha256, contents(bundle), lambda content: content)
    assert kept_bundle(bundle.sha256) is not None


def test_a_bundle_that_broke_on_its_way_is_refused(cache: Path, tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    broken = contents(bundle)
    broken["step.onnx"][50] ^= 1
    with pytest.raises(InputError, match="the file has changed"):
        write_bundle(bundle.sha256, broken, lambda content: content)
    other = contents(bundle)
    other["manifest.json"] = np.append(other["manifest.json"], np.uint8(ord(" ")))
    with pytest.raises(InputError, match="it changed while it was opened"):
        write_bundle(bundle.sha256, other, lambda content: content)
    assert kept_bundle(bundle.sha256) is None


def test_where_no_copy_can_be_kept_the_error_says_where(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("NUWAXL_CACHE", str(tmp_path / "file" / "cache"))
    bundle = Bundle.open(tiny_bundle)
    with pytest.raises(InputError, match="NUWAXL_CACHE"):
        write_bundle(bundle.sha256, contents(bundle), lambda content: content)


def test_an_actor_moves_no_other_batch_than_the_last_it_started(cache: Path, tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    write_bundle(bundle.sha256, contents(bundle), lambda content: content)
    actor = RunnerActor()
    assert actor.open(bundle.sha256, None, WORKER)
    x = np.ones((2, 4, 3, 8, 8), np.float32)
    prompt = np.zeros((2, 4, 3, 2), np.float32)
    segments = Segments(x, prompt, prompt[:, 0], x, x[:, :, :1])
    for number in (1, 2):
        actor.start(number, segments)
    np.testing.assert_array_equal(actor.move(2, "latents", [1]), x[1:])
    with pytest.raises(ValueError, match="found batch 1"):
        actor.move(1, "latents", [1])


def test_plans_are_not_sent_and_not_missed(cache: Path, own_bundle: Path) -> None:
    without = Bundle.open(own_bundle)
    plan = named(Plan("step", "", "tensorrt", "11.4.0", (90,), (1,), (), "", "", ()), without.manifest)
    (own_bundle / "plans").mkdir()
    (own_bundle / plan.file).write_bytes(b"large")
    write_plans(own_bundle, [plan])
    bundle = Bundle.open(own_bundle)
    assert sorted(needed(bundle)) == sorted(needed(without))
    files = {name: np.fromfile(own_bundle / name, np.uint8) for name in needed(bundle)}
    copy = write_bundle(bundle.sha256, files, lambda content: content)
    assert copy.manifest == bundle.manifest
    assert kept_bundle(bundle.sha256) == copy


def test_an_actor_without_a_copy_asks_for_the_files(cache: Path, tiny_bundle: Path) -> None:
    assert RunnerActor().open(Bundle.open(tiny_bundle).sha256, None, WORKER) is False


def test_an_input_error_survives_the_way_from_another_process() -> None:
    error = pickle.loads(pickle.dumps(InputError(expected="a", found="b", fix="c")))
    assert (type(error), str(error), error.expected, error.found, error.fix) == (
        InputError,
        "expected a; found b; c",
        "a",
        "b",
        "c",
    )
