"""A plan is used where all that it was built for is the same, and nowhere else."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from nuwaxl.engine.bundle import Bundle, write_plans
from nuwaxl.engine.bundle_schema import FileEntry, Manifest, Plan, TensorSpec
from nuwaxl.engine.plans import Target, find_plan, graph_sha256, key, named, without_stale
from nuwaxl.errors import InputError

TARGET = Target("tensorrt-rtx", "1.7.1", 89)


@pytest.fixture
def manifest(tiny_bundle: Path) -> Manifest:
    return Bundle.open(tiny_bundle).manifest


def plan_of(manifest: Manifest, graph: str = "step", **changes: object) -> Plan:
    plan = Plan(
        graph=graph,
        file="",
        runtime="tensorrt-rtx",
        version="1.7.1",
        sm=(86, 89),
        batches=(1, 4),
        flags=(),
        graph_sha256=graph_sha256(manifest, graph),
        kernels_sha256="",
        accepted_on=(),
    )
    return named(replace(plan, **changes), manifest)  # type: ignore[arg-type]


def with_plans(folder: Path, *plans: Plan) -> Bundle:
    """The bundle with plans, each of some bytes."""
    (folder / "plans").mkdir(exist_ok=True)
    for plan in plans:
        (folder / plan.file).write_bytes(plan.file.encode())
    write_plans(folder, plans)
    return Bundle.open(folder)


def test_plans_are_read_back_hashed_and_taken_for_their_target(own_bundle: Path, manifest: Manifest) -> None:
    plan, other = plan_of(manifest, flags=("refit",)), plan_of(manifest, "text")
    bundle = with_plans(own_bundle, plan, other)
    assert find_plan(bundle.manifest, "step", TARGET, "bundle") == plan
    assert plan.file in bundle.manifest.files
    assert bundle.plan(plan) == own_bundle / plan.file
    (own_bundle / plan.file).write_bytes(b"x" * len(plan.file))
    again = rf"build it again: nuwaxl-export {own_bundle} --target tensorrt-rtx --sm 86,89 --batches 1,4 --refit$"
    opened = Bundle.open(own_bundle)  # a plan is of no matter to who does not use it
    assert opened.plan(other).is_file()
    with pytest.raises(InputError, match=f"the file has changed; {again}"):
        opened.plan(plan)
    (own_bundle / plan.file).unlink()
    with pytest.raises(InputError, match=f"No such file or directory; {again}"):
        Bundle.open(own_bundle).plan(plan)


def test_a_bundle_without_plans_is_as_it_was_before_there_were_any(own_bundle: Path, manifest: Manifest) -> None:
    before = (own_bundle / "manifest.json").read_bytes()
    assert b"plans" not in before
    with_plans(own_bundle, plan_of(manifest))
    assert (own_bundle / "manifest.json").read_bytes() != before
    write_plans(own_bundle, [])
    assert (own_bundle / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        {"graph": "decode"},
        {"runtime": "tensorrt"},
        {"version": "1.7.2"},
        {"sm": (89,)},
        {"batches": (1, 8)},
        {"flags": ("refit",)},
        {"graph_sha256": "0" * 64},
        {"kernels_sha256": "1" * 64},
    ],
)
def test_every_fact_is_in_the_key(manifest: Manifest, change: dict[str, object]) -> None:
    plan = plan_of(manifest)
    assert key(replace(plan, **change), manifest) != key(plan, manifest)  # type: ignore[arg-type]


def test_a_graph_is_its_file_and_that_of_its_large_weights(manifest: Manifest) -> None:
    def with_weights(sha256: str) -> Manifest:
        step = replace(manifest.graphs["step"], data="step.data")
        files = {**manifest.files, "step.data": FileEntry(sha256, 1)}
        return replace(manifest, graphs={**manifest.graphs, "step": step}, files=files)

    one, other = with_weights("0" * 64), with_weights("1" * 64)
    assert len({graph_sha256(each, "step") for each in (manifest, one, other)}) == 3
    assert graph_sha256(one, "text") == graph_sha256(other, "text")
    built = replace(one, plans=(plan_of(one),))
    assert find_plan(built, "step", TARGET, "bundle").graph == "step"
    with pytest.raises(InputError, match="a graph that has changed since"):
        find_plan(replace(other, plans=built.plans), "step", TARGET, "bundle")


def test_the_tensors_are_in_the_key_and_the_acceptance_is_not(manifest: Manifest) -> None:
    plan = plan_of(manifest)
    assert key(replace(plan, accepted_on=("a GPU",), file="elsewhere"), manifest) == key(plan, manifest)
    graph = manifest.graphs["step"]
    wider = replace(graph, inputs=(*graph.inputs[:-1], TensorSpec("known", ("batch", 4, 3, 8, 16), "float32")))
    assert key(plan, replace(manifest, graphs={**manifest.graphs, "step": wider})) != key(plan, manifest)


@pytest.mark.parametrize(
    ("change", "target", "found"),
    [
        ({}, replace(TARGET, version="1.8.0"), "one for tensorrt-rtx 1.7.1"),
        ({}, replace(TARGET, runtime="tensorrt"), "one for tensorrt-rtx 1.7.1"),
        ({}, replace(TARGET, sm=120), "one for SM 86, 89"),
        ({"graph_sha256": "0" * 64}, TARGET, "a graph that has changed since"),
        ({"kernels_sha256": "0" * 64}, TARGET, "kernels that have changed since"),
        ({"graph": "text"}, TARGET, "no plan of this graph"),
    ],
)
def test_a_plan_for_something_else_is_refused_with_what_to_run(
    manifest: Manifest, change: dict[str, object], target: Target, found: str
) -> None:
    other = replace(manifest, plans=(plan_of(manifest, **change),))  # type: ignore[arg-type]
    with pytest.raises(InputError) as caught:
        find_plan(other, "step", target, "my/bundle")
    message = str(caught.value)
    assert f"a plan of the graph step for {target} in my/bundle" in message
    assert found in message
    command = "--target tensorrt, on this machine" if target.runtime == "tensorrt" else f"--sm {target.sm}"
    assert "run nuwaxl-export my/bundle --target" in message
    assert command in message


def test_a_plan_that_says_it_is_for_something_else_than_it_was_built_for_is_refused(manifest: Manifest) -> None:
    lying = replace(plan_of(manifest), sm=(120,))
    with pytest.raises(InputError, match="built for something else than the manifest says"):
        find_plan(replace(manifest, plans=(lying,)), "step", replace(TARGET, sm=120), "bundle")


def test_new_plans_take_the_place_of_those_for_the_same_gpus_and_stale_ones_go(manifest: Manifest) -> None:
    old, other_gpu = plan_of(manifest), plan_of(manifest, sm=(120,))
    stale = plan_of(manifest, "text", graph_sha256="0" * 64)
    new = plan_of(manifest, batches=(2,))
    assert without_stale(replace(manifest, plans=(old, other_gpu, stale)), [new]) == [new, other_gpu]


def test_plans_for_fewer_gpus_leave_those_for_more_to_the_rest(manifest: Manifest) -> None:
    old, new = plan_of(manifest, sm=(89, 120)), plan_of(manifest, sm=(89,), batches=(2,))
    both = replace(manifest, plans=tuple(without_stale(replace(manifest, plans=(old,)), [new])))
    assert find_plan(both, "step", TARGET, "bundle") == new
    assert find_plan(both, "step", replace(TARGET, sm=120), "bundle") == old
    assert without_stale(both, [old]) == [old], "which is for all that the other is for"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"graph": "dream"}, "dream"),
        ({"file": "plans/absent.plan"}, "absent.plan"),
        ({"sm": [8.9]}, "sm"),
        ({"flags": [1]}, "flags"),
        ({"version": 3}, "version"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_wrong_plan_in_the_manifest_says_what_is_wrong(
    own_bundle: Path, manifest: Manifest, change: dict[str, object], said: str
) -> None:
    with_plans(own_bundle, plan_of(manifest))
    path = own_bundle / "manifest.json"
    table = json.loads(path.read_text())
    table["plans"][0].update(change)
    path.write_text(json.dumps(table))
    with pytest.raises(InputError, match=said):
        Bundle.open(own_bundle)


@pytest.mark.parametrize("name", ["/etc/passwd", "plans/../../x", "plans//x", "a/./b", "plans/", "..", ""])
def test_files_stay_below_the_bundle(own_bundle: Path, name: str) -> None:
    path = own_bundle / "manifest.json"
    table = json.loads(path.read_text())
    table["files"][name] = {"sha256": "0" * 64, "bytes": 1}
    path.write_text(json.dumps(table))
    with pytest.raises(InputError, match=r"files beside or below manifest\.json"):
        Bundle.open(own_bundle)


def test_a_bundle_with_plans_is_copied_whole(
    own_bundle: Path, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    from nuwaxl.engine.bundle_copies import write_bundle

    monkeypatch.setenv("NUWAXL_CACHE", str(tmp_path / "cache"))
    plan = plan_of(manifest)
    bundle = with_plans(own_bundle, plan)
    files = {name: own_bundle / name for name in ("manifest.json", *bundle.manifest.files)}
    copy = write_bundle(bundle.sha256, files, lambda path: np.fromfile(path, dtype=np.uint8))
    shutil.rmtree(own_bundle)
    assert (copy.path / plan.file).read_bytes() == plan.file.encode()
