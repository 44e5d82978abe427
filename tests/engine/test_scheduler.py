"""The scheduler, driven by one simulated thread in many interleavings; every rule of its own in a small example."""

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nuwaxl.engine._core import CostModel, Plan, Scheduler, Work
from tests.engine.scheduling import POLICIES, Item, Model, Video, add, flat, slow, videos, wide, windows_over

Kind = Callable[[], CostModel]


@given(
    st.sampled_from(POLICIES),
    st.lists(st.sampled_from([wide, flat, slow]), min_size=1, max_size=4),
    st.integers(1, 9),
    st.lists(videos(), min_size=1, max_size=3),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_every_interleaving_keeps_the_rules_and_ends(
    policy: str, kinds: list[Kind], max_batch: int, jobs: list[Video], troubles: bool, random: Random
) -> None:
    """Devices step, end piecemeal, join, decode and are lost, jobs come and fail, in any order."""
    costs = [kind() for kind in kinds]
    scheduler = Scheduler(policy=policy, devices=costs, max_batch=max_batch)
    model = Model(policy, costs, max_batch)
    waiting, lost, decoded = list(jobs), set[int](), list[Item]()

    def act(device: int) -> None:
        if model.window[device] is not None:
            item = model.window[device]
            assert item is not None
            scheduler.done(device, [item])
            model.done(device, [item])
            decoded.append(item)
        elif model.held[device]:
            scheduler.advance(device)
            finished = model.step(device)
            model.done(device, finished)
            scheduler.done(device, finished)
            if model.held[device]:
                newcomers = scheduler.join(device)
                assert policy != "level" or not newcomers
                model.took(device, newcomers)
        else:
            work = scheduler.try_next(device)
            model.handed_out(device, work)
        assert sorted(scheduler.held(device)) == sorted([*model.held[device], *filter(None, [model.window[device]])])

    for turn in range(100_000):
        if waiting and (model.over or random.random() < 0.1):
            assert add(scheduler, waiting[0]) == len(model.jobs)
            model.add(waiting.pop(0))
        if not waiting and turn % 7 == 0:
            scheduler.close()
        if decoded and random.random() < 0.5:
            job, window = decoded.pop(random.randrange(len(decoded)))
            scheduler.consumed(job, window)
            model.jobs[job].consumed += 1
        if troubles and random.random() < 0.02 and len(lost) + 1 < len(costs):
            device = random.choice([device for device in range(len(costs)) if device not in lost])
            lost.add(device)
            scheduler.lost(device)
            model.lost(device)
        if troubles and random.random() < 0.01 and model.jobs:
            job = random.randrange(len(model.jobs))
            scheduler.fail(job)
            model.jobs[job].failed = model.jobs[job].failed or not model.jobs[job].over
            assert scheduler.failed(job) == model.jobs[job].failed
        alive = [device for device in range(len(costs)) if device not in lost]
        act(random.choice(alive))
        if not waiting and model.over:
            break
    scheduler.close()
    assert model.over
    assert scheduler.finished
    assert not scheduler.stopped
    assert all(scheduler.next(device) is None for device in range(len(costs)))
    for number, job in enumerate(model.jobs):
        assert scheduler.job_finished(number) == (not job.failed)
        if not job.failed:
            assert job.done == set(range(len(job.video.plan)))
            assert job.windows_done == set(range(len(job.video.windows)))
    if not lost:
        assert set(model.times_given.values()) <= {1}


def scheduler_for(*jobs: Video, policy: str = "eager", devices: int = 2, max_batch: int = 8) -> Scheduler:
    scheduler = Scheduler(policy=policy, devices=[wide()] * devices, max_batch=max_batch)
    for job in jobs:
        add(scheduler, job)
    return scheduler


def video(frames: int = 1024, steps: int = 10, windows: list[tuple[int, int]] | None = None, ahead: int = 1) -> Video:
    return Video(Plan(frames, 16), steps, windows or [], ahead)


def take(scheduler: Scheduler, device: int) -> Work:
    work = scheduler.try_next(device)
    assert work is not None
    return work


def finish(scheduler: Scheduler, work: Work) -> None:
    scheduler.done(work.device, work.items)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_video_of_which_all_is_there_is_only_decoded(policy: str) -> None:
    plan = Plan(100, 16)
    whole = Video(plan, 3, [(0, 15), (16, 31)], 2, list(range(len(plan))))
    scheduler = scheduler_for(whole, Video(plan, 3, [], 1, list(range(len(plan)))), policy=policy)
    assert (scheduler.job_finished(0), scheduler.job_finished(1)) == (False, True)
    works = [take(scheduler, 0), take(scheduler, 1)]
    assert [(work.kind, work.items) for work in works] == [("decode", [(0, 0)]), ("decode", [(0, 1)])]
    for work in works:
        finish(scheduler, work)
    scheduler.close()
    assert scheduler.finished


def test_level_waits_at_the_barrier_where_eager_goes_on() -> None:
    following = {}
    for policy in ("level", "eager"):
        scheduler = scheduler_for(video(), policy=policy)
        finish(scheduler, take(scheduler, 0))
        first, second = take(scheduler, 0), take(scheduler, 1)
        assert sorted(first.items + second.items) == [(0, id) for id in range(1, 6)]
        finish(scheduler, first)
        following[policy] = scheduler.try_next(0)
        finish(scheduler, second)
    assert following["level"] is None
    assert following["eager"] is not None
    assert all(id > 5 for _, id in following["eager"].items)


def test_eager_mixes_videos_and_depths_and_puts_the_longest_chain_first() -> None:
    scheduler = scheduler_for(video(16), video(1024), video(100, steps=25), devices=1)
    # Chains of 10, of 3 * 10 and of 2 * 25 steps.
    assert take(scheduler, 0).items == [(2, 0), (1, 0), (0, 0)]


def test_level_takes_one_depth_of_one_video_and_nobody_joins() -> None:
    scheduler = scheduler_for(video(100), video(100), policy="level", devices=1)
    assert take(scheduler, 0).items == [(0, 0)]
    scheduler.advance(0)
    assert scheduler.join(0) == []


def test_newcomers_join_while_they_share_three_quarters_of_their_steps() -> None:
    for left in range(1, 10):
        scheduler = scheduler_for(video(16), devices=1)
        take(scheduler, 0)
        for _ in range(10 - left):
            scheduler.advance(0)
        add(scheduler, video(16))
        assert scheduler.join(0) == ([(1, 0)] if left >= 8 else [])


def test_latency_lets_newcomers_join_at_any_step() -> None:
    scheduler = scheduler_for(video(16), policy="latency", devices=1)
    take(scheduler, 0)
    for _ in range(9):
        scheduler.advance(0)
    job = add(scheduler, video(16))
    assert scheduler.join(0) == [(job, 0)]


def test_latency_denoises_what_the_first_frames_need_on_its_own() -> None:
    scheduler = scheduler_for(video(3000, windows=[(0, 15), (16, 31)]), policy="latency", devices=1)
    plan = Plan(3000, 16)
    for depth in range(3):
        work = take(scheduler, 0)
        assert [plan.segment(id).depth for _, id in work.items] == [depth] * len(work.items)
        assert all(plan.segment(id).first_frame <= 15 for _, id in work.items)
        finish(scheduler, work)
    assert take(scheduler, 0).kind == "decode"
    scheduler.done(0, [(0, 0)])
    assert len(take(scheduler, 0).items) == 8


def test_a_batch_stays_within_what_a_step_does_best() -> None:
    for cost, max_batch, expected in ((wide(), 8, 8), (wide(), 3, 3), (flat(), 8, 1)):
        scheduler = Scheduler(policy="eager", devices=[cost], max_batch=max_batch)
        for _ in range(20):
            add(scheduler, video(16))
        assert len(take(scheduler, 0).items) == expected


def test_a_slow_device_leaves_the_last_segments_to_a_fast_one() -> None:
    scheduler = Scheduler(policy="eager", devices=[slow(), wide()], max_batch=8)
    add(scheduler, video(16))
    scheduler.close()
    assert scheduler.try_next(0) is None
    finish(scheduler, take(scheduler, 1))
    assert scheduler.finished


def test_backpressure_holds_decoding_until_a_clip_is_taken() -> None:
    scheduler = scheduler_for(video(30, windows=[(0, 9), (10, 19), (20, 29)], ahead=2), devices=1)
    order = []
    while (work := scheduler.try_next(0)) is not None:
        order.append((work.kind, work.items))
        finish(scheduler, work)
    assert order[-2:] == [("decode", [(0, 0)]), ("decode", [(0, 1)])]
    assert not scheduler.finished
    scheduler.consumed(0, 0)
    work = take(scheduler, 0)
    assert work.items == [(0, 2)]
    finish(scheduler, work)
    assert scheduler.job_finished(0)
    assert not scheduler.finished
    scheduler.close()
    assert scheduler.finished
    assert scheduler.next(0) is None


def test_a_window_that_nobody_waits_for_fills_gaps() -> None:
    scheduler = scheduler_for(video(16, windows=[(0, 7), (8, 15)], ahead=2), devices=1)
    finish(scheduler, take(scheduler, 0))
    add(scheduler, video(16))
    kinds = []
    for _ in range(3):
        work = take(scheduler, 0)
        kinds.append((work.kind, work.items))
        finish(scheduler, work)
    assert kinds == [("decode", [(0, 0)]), ("diffuse", [(1, 0)]), ("decode", [(0, 1)])]


def test_what_a_lost_device_held_goes_to_another_one() -> None:
    scheduler = scheduler_for(video(16))
    held = take(scheduler, 0)
    assert scheduler.try_next(1) is None
    scheduler.lost(0)
    assert scheduler.held(0) == []
    assert scheduler.next(0) is None
    assert take(scheduler, 1).items == held.items
    assert not scheduler.stopped
    scheduler.lost(1)
    assert scheduler.stopped


def test_a_device_goes_on_while_its_window_is_on_its_way() -> None:
    scheduler = scheduler_for(video(16, windows=[(0, 7), (8, 15)], ahead=2), devices=2)
    scheduler.close()
    finish(scheduler, take(scheduler, 0))
    assert take(scheduler, 0).items == [(0, 0)]
    scheduler.leave(0)
    assert scheduler.held(0) == []
    with pytest.raises(ValueError, match=r"expected no window on its way from device 0.*arrived\(device\)"):
        scheduler.next(0)
    assert take(scheduler, 0).items == [(0, 1)]
    with pytest.raises(ValueError, match="expected device 0 to hold a window, with no other on its way"):
        scheduler.leave(0)
    scheduler.done(0, [(0, 1)])
    assert not scheduler.job_finished(0)
    assert not scheduler.finished
    scheduler.arrived(0)
    assert scheduler.job_finished(0)
    assert scheduler.finished
    for refused in (scheduler.leave, scheduler.arrived):
        with pytest.raises(ValueError, match="found none"):
            refused(0)


def test_a_failed_job_is_dropped_and_what_is_held_of_it_ignored() -> None:
    scheduler = scheduler_for(video(100), video(100), devices=1)
    work = take(scheduler, 0)
    assert work.items == [(0, 0), (1, 0)]
    scheduler.fail(0)
    assert scheduler.held(0) == work.items
    finish(scheduler, work)
    assert {job for job, _ in take(scheduler, 0).items} == {1}


def test_items_that_are_not_held_are_refused_and_nothing_changes() -> None:
    scheduler = scheduler_for(video())
    work = take(scheduler, 1)
    for device, items in ((0, work.items), (1, [(0, 1)]), (1, [*work.items, *work.items]), (1, [(7, 0)])):
        with pytest.raises(ValueError, match=rf"expected items that .* gave to device {device}.*once"):
            scheduler.done(device, items)
    assert scheduler.held(1) == work.items
    finish(scheduler, work)
    with pytest.raises(ValueError, match="report each item done once"):
        finish(scheduler, work)


def test_a_device_must_report_before_it_asks_again() -> None:
    scheduler = scheduler_for(video())
    work = take(scheduler, 0)
    with pytest.raises(ValueError, match=r"expected device 0 to be free.*done\(\) for all"):
        scheduler.next(0)
    finish(scheduler, work)
    for ask in (scheduler.join, scheduler.advance):
        with pytest.raises(ValueError, match="expected device 0 to hold segments; found none"):
            ask(0)
    assert len(take(scheduler, 0).items) == 3


def test_windows_are_consumed_once_and_only_after_they_were_handed_out() -> None:
    scheduler = scheduler_for(video(16, windows=[(0, 15)]), devices=1)
    for window in (-1, 0, 1):
        with pytest.raises(ValueError, match=f"expected a decode window.*found window {window}"):
            scheduler.consumed(0, window)
    finish(scheduler, take(scheduler, 0))
    take(scheduler, 0)
    scheduler.consumed(0, 0)
    with pytest.raises(ValueError, match="consumed once"):
        scheduler.consumed(0, 0)


def test_videos_come_before_the_end() -> None:
    for end in (Scheduler.close, Scheduler.stop):
        scheduler = scheduler_for(video())
        end(scheduler)
        with pytest.raises(ValueError, match="expected a scheduler that takes further videos"):
            add(scheduler, video())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"steps": 0}, "expected steps of at least 1; found 0"),
        ({"steps": 2**60}, r"at most 2\^60 denoising steps one after another; found 3 segments of 1152921504606846976"),
        ({"ahead": 0}, "expected decode_ahead of at least 1; found 0"),
        ({"windows": [(3, 2)]}, r"in order.*found \(3, 2\)"),
        ({"windows": [(-1, 2)]}, r"in order.*found \(-1, 2\)"),
        ({"windows": [(5, 8), (4, 9)]}, r"in order.*found \(4, 9\)"),
        ({"windows": [(0, 1024)]}, r"within frames 0 to 1023; found \(0, 1024\)"),
        ({"finished": [1]}, "finished segments in rising order, each after its parent; found 1"),
        ({"finished": [0, 0]}, "finished segments in rising order, each after its parent; found 0"),
        ({"finished": [0, 2, 1]}, "finished segments in rising order, each after its parent; found 1"),
        ({"finished": [0, 75]}, "found 75"),
    ],
)
def test_an_impossible_video_is_refused_with_what_to_do(change: dict[str, object], text: str) -> None:
    arguments = {"plan": Plan(1024, 16), "steps": 1, "windows": [], "ahead": 1} | change
    scheduler = scheduler_for()
    with pytest.raises(ValueError, match=text):
        add(scheduler, Video(**arguments))  # type: ignore[arg-type]
    assert add(scheduler, video()) == 0


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"policy": "lazy"}, 'expected policy "level", "eager" or "latency"; found "lazy"'),
        ({"devices": []}, "expected devices of at least 1; found 0"),
        ({"max_batch": 0}, "expected max_batch of 1 to 65536; found 0"),
        ({"max_batch": 2**40}, "expected max_batch of 1 to 65536; found 1099511627776"),
    ],
)
def test_an_impossible_scheduler_is_refused_with_what_to_do(change: dict[str, object], text: str) -> None:
    arguments = {"policy": "eager", "devices": [flat()], "max_batch": 1} | change
    with pytest.raises(ValueError, match=text):
        Scheduler(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("device", [-1, 2])
def test_an_unknown_device_is_refused(device: int) -> None:
    with pytest.raises(ValueError, match=f"expected a device between 0 and 1; found {device}"):
        scheduler_for().next(device)


def test_an_unknown_job_is_refused() -> None:
    scheduler = scheduler_for(video())
    for ask in (scheduler.fail, scheduler.failed, scheduler.job_finished):
        with pytest.raises(ValueError, match="expected the number of a job"):
            ask(1)


def test_windows_over_is_what_the_tests_mean() -> None:
    assert windows_over(Plan(30, 16), 10, 1) == [(0, 8), (7, 16), (15, 24), (23, 29)]
