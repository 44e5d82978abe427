"""The runner whose tensors stay on the device, against the plain ONNX Runtime runner.

Its code is the CUDA runner's but for the provider's options: it really runs here, on the host's memory and, through the
CUDA device layer, on a fake GPU that does everything as late as a GPU may.
"""

import ctypes
import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import onnxruntime
import pytest

from nuwaxl.engine import Engine, Story
from nuwaxl.engine.bundle import Bundle
from nuwaxl.engine.bundle_schema import TensorSpec
from nuwaxl.engine.devices import Worker
from nuwaxl.engine.runners.base import Denoising, Runner, Segments
from nuwaxl.engine.runners.bound import BoundRunner, element_type
from nuwaxl.engine.runners.device.host import HostDevice
from nuwaxl.engine.runners.onnxruntime import OnnxRuntimeRunner
from nuwaxl.engine.runners.slots import Rows, both_ends, bucket, room, row_bytes
from nuwaxl.errors import DeviceLost, RenderError

from .bound import KINDS, LateSession, on_fake, on_host
from .conftest import write_tiny_bundle
from .fake_cuda import FakeCuda, Status

WORKER = Worker("cpu#0", threads=1, alone=True)


@pytest.fixture
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture
def cuda() -> FakeCuda:
    return FakeCuda()


@pytest.fixture(params=KINDS)
def runner(request: pytest.FixtureRequest, bundle: Bundle, cuda: FakeCuda) -> BoundRunner:
    return on_host(bundle) if request.param == "host" else on_fake(bundle, cuda)


def segments(random: np.random.Generator, count: int) -> Segments:
    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal((count, *shape)).astype(np.float32)

    mask = random.integers(0, 2, (count, 4, 1, 8, 8)).astype(np.float32)
    return Segments(normal(4, 3, 8, 8), normal(4, 3, 2), normal(3, 2), normal(4, 3, 8, 8), mask)


def play(runner: Runner, seed: int) -> list[np.ndarray]:
    """Some batches of segments that come and go, with everything that was read of them; the same for every runner."""
    random = np.random.default_rng(seed)
    seen = []
    for _ in range(2):
        batch = segments(random, int(random.integers(1, 6)))
        denoising: Denoising = runner.start(batch)
        count = len(batch.x)
        for _ in range(12):
            move = random.choice(["step", "noisy step", "join", "keep", "latents"], p=[0.4, 0.15, 0.15, 0.15, 0.15])
            if move == "join":
                more = segments(random, int(random.integers(1, 7)))
                denoising.join(more)
                count += len(more.x)
            elif move == "keep":
                slots = random.permutation(count)[: int(random.integers(1, count + 1))]
                denoising.keep([int(slot) for slot in slots])
                count = len(slots)
            elif move == "latents":
                seen.append(denoising.latents([int(slot) for slot in random.permutation(count)[:3]]))
            else:
                rows = random.uniform(-0.6, 0.6, (count, 6)).astype(np.float32)
                noise = None if move == "step" else random.standard_normal((count, 4, 3, 8, 8)).astype(np.float32)
                guidance = random.uniform(0, 4, count).astype(np.float32)
                denoising.step(random.integers(0, 100, count), rows, guidance, noise)
        seen.append(denoising.latents(range(count)))
        seen.append(runner.decode(denoising.latents(range(min(count, 2)))))
        del denoising
    return seen


@pytest.mark.parametrize("seed", range(6))
def test_segments_that_come_and_go_are_moved_as_the_plain_runner_moves_them(
    runner: BoundRunner, bundle: Bundle, seed: int
) -> None:
    for found, expected in zip(play(runner, seed), play(OnnxRuntimeRunner(bundle, WORKER), seed), strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found.astype(np.float64), expected.astype(np.float64), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_in_half_precision_are_bound_as_what_they_are(kind: str, cuda: FakeCuda, tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path, precision="fp16")
    bundle = Bundle.open(tmp_path)
    runner = on_host(bundle) if kind == "host" else on_fake(bundle, cuda)
    for found, expected in zip(play(runner, 1), play(OnnxRuntimeRunner(bundle, WORKER), 1), strict=True):
        np.testing.assert_allclose(found.astype(np.float64), expected.astype(np.float64), rtol=1e-5, atol=1e-5)


def test_prepare_takes_one_segment_at_a_time(bundle: Bundle, cuda: FakeCuda) -> None:
    """What it needs grows with them, and every other number of them is planned anew by the CUDA provider."""
    runner = on_fake(bundle, cuda)
    runner.start(segments(np.random.default_rng(0), 10))
    assert [rows for rows, _ in runner.session("prepare").ran] == [1] * 10


def test_text_and_frames_are_encoded_as_the_plain_runner_does(runner: BoundRunner, bundle: Bundle) -> None:
    plain = OnnxRuntimeRunner(bundle, WORKER)
    tokens = np.array([[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(runner.encode_text(tokens), plain.encode_text(tokens))
    video = np.random.default_rng(0).integers(0, 256, (2, 4, 16, 16, 3), dtype=np.uint8)
    np.testing.assert_array_equal(runner.encode(video), plain.encode(video))


def test_frames_come_while_the_device_goes_on(runner: BoundRunner, bundle: Bundle) -> None:
    plain, random = OnnxRuntimeRunner(bundle, WORKER), np.random.default_rng(3)
    latents = [random.standard_normal((count, 4, 3, 8, 8)).astype(np.float32) for count in (1, 3, 2)]
    batch = segments(random, 2)
    denoising = runner.start(batch)
    clips = []
    for given in latents:
        clips.append(runner.begin_decode(given.copy()))
        denoising.step(np.array([9, 5]), np.full((2, 6), 0.3, np.float32), np.ones(2, np.float32), None)
    denoising.latents([0, 1])
    for given, clip in zip(reversed(latents), reversed(clips), strict=True):
        np.testing.assert_array_equal(clip(), plain.decode(given))


def test_a_render_has_the_frames_of_the_plain_runner(runner: BoundRunner, bundle: Bundle, story_file: Path) -> None:
    def frames(of: Runner) -> np.ndarray:
        with Engine(bundle, (WORKER,), (of,)) as engine:
            video = engine.render(Story.load(story_file), frames=28, seed=3, steps=4)
            return np.concatenate([clip.frames for clip in video])

    found, expected = frames(runner), frames(OnnxRuntimeRunner(bundle, WORKER))
    assert found.shape == (28, 16, 16, 3)
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1


def test_nothing_is_copied_to_the_host_between_steps_and_addresses_stay(bundle: Bundle, cuda: FakeCuda) -> None:
    runner = on_fake(bundle, cuda)
    random = np.random.default_rng(0)
    denoising = runner.start(segments(random, 3))
    row = np.full((3, 6), 0.3, dtype=np.float32)

    def step() -> list[tuple[str, tuple[Any, ...]]]:
        cuda.calls.clear()
        denoising.step(np.array([9, 5, 1]), row, np.ones(3, dtype=np.float32), None)
        return list(cuda.calls)

    step()
    step()
    calls = [step() for _ in range(4)]
    host = [address for address, kind in cuda.live.items() if kind == "host"]
    for made in calls:
        names = {name for name, _ in made}
        assert names <= {"cudaMemcpyAsync", "cudaEventSynchronize", "cudaEventRecord"}
        copies = [arguments for name, arguments in made if name == "cudaMemcpyAsync"]
        assert not any(start <= target < start + cuda.size(start) for target, *_ in copies for start in host)
        # Timesteps, coefficients and guidance go in; x and the history stay on the device.
        assert sum(count for _, _, count, *_ in copies) == 3 * 4 * (1 + 6 + 1) + 2 * 3 * (4 * 3 * 8 * 8) * 4
    # Two stages take turns: every second step has the same addresses.
    assert calls[0] == calls[2] != calls[1]
    runner.close()
    assert not cuda.live


def test_the_host_runs_two_steps_ahead_and_no_more(bundle: Bundle, cuda: FakeCuda) -> None:
    runner = on_fake(bundle, cuda)
    denoising = runner.start(segments(np.random.default_rng(0), 2))
    waiting: list[int] = []
    for _ in range(5):
        denoising.step(np.array([9, 5]), np.full((2, 6), 0.3, dtype=np.float32), np.ones(2, dtype=np.float32), None)
        stream = cuda.objects[runner.stream.handle]
        waiting.append(len(stream.queue))
    a_step = waiting[1] - waiting[0]
    assert waiting[4] == waiting[3] == waiting[2] == 2 * a_step  # no more is under way, however many there were


def test_runs_are_padded_to_buckets_each_with_a_number_of_its_own(bundle: Bundle, cuda: FakeCuda) -> None:
    numbers: list[int | None] = []

    def options(number: int | None) -> int | None:
        numbers.append(number)
        return number

    runner = on_fake(bundle, cuda, options)
    random = np.random.default_rng(0)
    denoising = runner.start(segments(random, 5))
    session = runner.session("step")
    assert isinstance(session, LateSession)

    def step(count: int, batch: Denoising) -> tuple[int, Any]:
        batch.step(np.zeros(count, int), np.ones((count, 6), np.float32), np.ones(count, np.float32), None)
        return session.ran[-1]

    five = step(5, denoising)
    assert five[0] == 5
    denoising.keep([4, 0])
    two = step(2, denoising)
    assert two[0] == 2
    denoising.join(segments(random, 3))
    assert step(5, denoising) == five  # the same addresses and shape: the graph that was captured is replayed
    denoising.join(segments(random, 1))
    six = step(6, denoising)
    denoising.keep([0, 1])
    assert step(2, denoising) == two  # there was room for six
    denoising.join(segments(random, 7))
    ten = step(9, denoising)
    assert ten[0] == 10
    denoising.keep([0, 1])
    # The memory grew: another address, another graph.
    assert step(2, denoising)[1] not in (five[1], two[1], six[1], ten[1])
    del denoising
    gc.collect()
    again = runner.start(segments(random, 2))
    again.step(np.zeros(2, int), np.ones((2, 6), np.float32), np.ones(2, np.float32), None)
    assert len(set(numbers)) == len(numbers)
    memory = list(cuda.live.values()).count("device")
    del again
    gc.collect()
    runner.start(segments(random, 2))
    assert list(cuda.live.values()).count("device") == memory  # the memory of the batch before is taken again


def test_two_batches_at_a_time_do_not_share_memory(runner: BoundRunner, bundle: Bundle) -> None:
    random = np.random.default_rng(0)
    first, second = segments(random, 2), segments(random, 3)
    one, other = runner.start(first), runner.start(second)
    np.testing.assert_array_equal(one.latents([0, 1]), first.x)
    np.testing.assert_array_equal(other.latents([2, 0]), second.x[[2, 0]])


def test_a_runner_that_cannot_open_a_graph_leaves_nothing(bundle: Bundle, cuda: FakeCuda) -> None:
    runner = on_fake(bundle, cuda)
    runner.start(segments(np.random.default_rng(0), 3))
    runner.close()
    assert not cuda.live


def test_newcomers_that_find_no_memory_leave_the_batch_as_it_was(bundle: Bundle, cuda: FakeCuda) -> None:
    runner, plain = on_fake(bundle, cuda), OnnxRuntimeRunner(bundle, WORKER)
    random = np.random.default_rng(0)
    first, more = segments(random, 2), segments(random, 5)
    batches = [runner.start(first), plain.start(first)]
    batches[0].latents([0, 1])  # so that there is memory for what is read
    cuda.fail["cudaMalloc"] = Status.cudaErrorMemoryAllocation, cuda.names().count("cudaMalloc") + 4
    memory = list(cuda.live.values()).count("device")
    with pytest.raises(RenderError, match="--max-batch"):
        batches[0].join(more)
    assert list(cuda.live.values()).count("device") == memory
    for batch in batches:
        batch.step(np.array([9, 5]), np.full((2, 6), 0.3, np.float32), np.ones(2, np.float32), None)
    np.testing.assert_allclose(batches[0].latents([0, 1]), batches[1].latents([0, 1]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("graph", ["prepare", "decode"])
def test_a_graph_that_finds_no_memory_for_its_outputs_keeps_none(bundle: Bundle, cuda: FakeCuda, graph: str) -> None:
    runner = on_fake(bundle, cuda)
    before, inputs = len(cuda.live), len(runner.graphs[graph].inputs)
    for _ in range(2):
        cuda.fail["cudaMalloc"] = Status.cudaErrorMemoryAllocation, cuda.names().count("cudaMalloc") + inputs
        with pytest.raises(RenderError, match="smaller --max-batch"):
            both_ends(runner.device, runner.graphs[graph], 1)
        assert len(cuda.live) == before


def test_a_run_that_fails_because_the_device_is_gone_says_so(bundle: Bundle, cuda: FakeCuda) -> None:
    runner = on_fake(bundle, cuda)
    denoising = runner.start(segments(np.random.default_rng(0), 1))

    def fails(binding: Any, options: Any) -> None:
        raise RuntimeError("CUDA failure 700")

    runner.session("step").run_with_iobinding = fails

    def step() -> None:
        denoising.step(np.array([9]), np.full((1, 6), 0.3, np.float32), np.ones(1, np.float32), None)

    with pytest.raises(RuntimeError, match="CUDA failure 700"):
        step()
    for name in ("cudaStreamSynchronize", "cudaFree"):
        cuda.fail[name] = Status.cudaErrorIllegalAddress, 0
    with pytest.raises(DeviceLost, match="cuda:0"):
        step()
    runner.close()  # says nothing more


def encode_text(runner: BoundRunner) -> np.ndarray:
    return runner.encode_text(np.array([[1, 2, 3]]))


def encode(runner: BoundRunner) -> np.ndarray:
    return runner.encode(np.zeros((1, 4, 16, 16, 3), np.uint8))


@pytest.mark.parametrize("work", [encode_text, encode])
def test_a_threads_first_work_is_on_the_device_and_ends_no_capture(
    work: Callable[[BoundRunner], np.ndarray], bundle: Bundle, cuda: FakeCuda
) -> None:
    runner = on_fake(bundle, cuda)
    cuda.unminding.clear()  # a new thread may have the number of one that ended
    with ThreadPoolExecutor(1) as worker:  # opens the session and runs it: both may allocate
        assert np.isfinite(worker.submit(work, runner).result()).all()


@pytest.mark.parametrize("work", [encode_text, encode])
def test_a_device_that_is_gone_while_the_host_waits_says_so(
    work: Callable[[BoundRunner], np.ndarray], bundle: Bundle, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("CUDA failure 700")

    runner = on_fake(bundle, cuda)
    monkeypatch.setattr(LateSession, "run", fails)
    with pytest.raises(RuntimeError, match="CUDA failure 700"):
        work(runner)
    cuda.fail["cudaStreamSynchronize"] = Status.cudaErrorIllegalAddress, 0
    with pytest.raises(DeviceLost, match="cuda:0"):
        work(runner)


def test_types_that_numpy_lacks_are_bound_by_their_number() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> g (bfloat16[batch,3] x) => (bfloat16[batch,3] y) { y = Identity(x) }'
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    device, bits = HostDevice(), np.arange(6, dtype=np.uint16).reshape(2, 3)
    binding, memory = session.io_binding(), {}
    for name, bind in (("x", binding.bind_input), ("y", binding.bind_output)):
        spec = TensorSpec(name, ("batch", 3), "bfloat16")
        assert row_bytes(spec) == 6
        memory[name] = device.allocate(12)
        bind(name, "cpu", 0, element_type(spec), [2, 3], memory[name].address)
    memory["x"].array((2, 3), np.uint16)[:] = bits
    session.run_with_iobinding(binding)
    np.testing.assert_array_equal(memory["y"].array((2, 3), np.uint16), bits)


def test_a_bucket_holds_the_batch_with_less_than_a_fifth_of_padding() -> None:
    buckets = [bucket(count) for count in range(1, 65)]
    assert sorted(set(buckets)) == [*range(1, 8), *range(8, 16, 2), *range(16, 32, 4), *range(32, 65, 8)]
    for count, size in enumerate(buckets, start=1):
        assert size >= count
        assert 5 * (size - count) < size
        assert bucket(size) == size
        assert size <= room(count) <= count * 3 // 2


def test_rows_stay_below_the_bucket_and_only_those_beyond_it_move() -> None:
    random = np.random.default_rng(0)
    rows, names = Rows(), list[int]()
    memory: dict[int, int] = {}
    for number in range(400):
        if names and random.random() < 0.5:
            slots = [int(slot) for slot in random.permutation(len(names))[: int(random.integers(1, len(names) + 1))]]
            names = [names[slot] for slot in slots]
            for source, target in rows.keep(slots):
                assert source >= rows.bucket > target
                memory[target] = memory[source]
        else:
            taken = rows.join(int(random.integers(1, 4)))
            fresh = [10 * number + i for i in range(len(taken))]
            memory.update(zip(taken, fresh, strict=True))
            names += fresh
        assert [memory[row] for row in rows.all] == names
        assert len(set(rows.all)) == len(names)
        assert max(rows.all) < rows.bucket


def test_rows_that_are_only_padding_are_zero_also_where_memory_was_not(bundle: Bundle, cuda: FakeCuda) -> None:
    """They are computed like all others: numbers that are none, or hardly any, would take a device longer."""
    runner = on_fake(bundle, cuda)
    for count in (9, 17):  # in memory of its own, and in memory that has taken over another's rows
        denoising = runner.start(segments(np.random.default_rng(0), 1))
        denoising.join(segments(np.random.default_rng(1), count - 1))
        tensors = denoising._tensors.all().values()
        denoising.latents([0])
        for tensor in tensors:
            rows = bucket(count) - count
            padding = np.ctypeslib.as_array((ctypes.c_uint8 * (rows * tensor.row_bytes)).from_address(tensor.at(count)))
            assert rows > 0
            assert not padding.any(), tensor.spec.name


def test_a_window_is_decoded_behind_the_steps_under_way_without_waiting_for_them(
    bundle: Bundle, cuda: FakeCuda
) -> None:
    runner, random = on_fake(bundle, cuda), np.random.default_rng(0)
    latents = random.standard_normal((1, 4, 3, 8, 8)).astype(np.float32)
    denoising = runner.start(segments(random, 2))
    expected = runner.decode(latents)  # also makes the memory that clips come through
    denoising.step(np.array([9, 5]), np.full((2, 6), 0.3, np.float32), np.ones(2, np.float32), None)
    stream = cuda.objects[runner.stream.handle]
    under_way = len(stream.queue)
    clip = runner.begin_decode(latents)
    assert len(stream.queue) > under_way > 0
    np.testing.assert_array_equal(clip(), expected)
