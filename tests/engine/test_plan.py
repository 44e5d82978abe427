"""The pruned tree of diffusions, paper section 3.3."""

import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nuwaxl.engine._core import Plan


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Pruned trees of every depth up to 4, of at most some thousand segments."""
    length = draw(st.integers(3, 16))
    depth = draw(st.integers(1, 4))
    frames = draw(st.integers(1, min(Plan.span(length, depth), 3000)))
    return Plan(frames, length, depth)


def test_1024_frames_at_length_16_and_depth_3_take_1_5_and_69_segments() -> None:
    plan = Plan(1024, 16, 3)
    assert plan.counts == [1, 5, 69]
    assert len(plan) == 75
    assert (plan.frames, plan.length, plan.depth) == (1024, 16, 3)


@pytest.mark.parametrize(("depth", "span"), [(1, 16), (2, 226), (3, 3376)])
def test_a_tree_spans_what_the_paper_says_and_the_default_depth_follows(depth: int, span: int) -> None:
    assert Plan.span(16, depth) == span
    assert Plan(span, 16).depth == depth
    assert Plan(span + 1, 16).depth == depth + 1
    assert Plan(span, 16).counts == [15**d for d in range(depth)]


@given(plans())
def test_the_plan_keeps_the_locals_whose_first_frame_lies_before_the_last_frame(plan: Plan) -> None:
    whole = plan.length - 1
    expected = [1]
    for depth in range(1, plan.depth):
        reach = whole ** (plan.depth - depth)
        expected.append(sum(index * reach < plan.frames - 1 for index in range(min(whole**depth, plan.frames))))
    assert plan.counts == [count for count in expected if count]


def test_a_video_that_ends_where_a_segment_would_begin_goes_without_it() -> None:
    assert [Plan(frames, 16).counts for frames in (31, 32, 226)] == [[1, 2], [1, 3], [1, 15]]
    assert [Plan(frames, 16).counts for frames in (451, 452)] == [[1, 2, 30], [1, 3, 31]]


def test_one_frame_takes_the_global_diffusion_alone_whatever_the_depth() -> None:
    plan = Plan(1, 16, 3)
    assert (plan.depth, plan.counts, len(plan), plan.children(0)) == (3, [1], 1, [])
    assert plan.frames_of(0)[-1] == 3375


@given(plans())
def test_every_frame_is_generated_exactly_once_and_origin_of_names_by_whom(plan: Plan) -> None:
    origin: dict[int, int] = {}
    generated: Counter[int] = Counter()
    for id in range(len(plan)):
        frames = plan.frames_of(id).tolist()
        for frame in frames if id == 0 else frames[1:-1]:
            generated[frame] += 1
            origin[frame] = id
    assert set(generated.values()) == {1}
    assert set(range(plan.frames)) <= set(generated)
    assert all(plan.origin_of(frame) == id for frame, id in origin.items())


@given(plans())
def test_a_segment_takes_its_ends_from_adjacent_frames_of_its_parent(plan: Plan) -> None:
    assert plan.segment(0).parent == -1
    for id in range(1, len(plan)):
        segment = plan.segment(id)
        parent = plan.segment(segment.parent)
        frames = plan.frames_of(id)
        given_frames = plan.frames_of(segment.parent)
        assert segment.parent < id
        assert parent.depth == segment.depth - 1
        assert parent.stride == segment.stride * (plan.length - 1)
        position = int(np.flatnonzero(given_frames == frames[0])[0])
        assert given_frames[position + 1] == frames[-1]


@given(plans())
def test_neighbours_of_one_depth_share_their_boundary_frame(plan: Plan) -> None:
    for id in range(1, len(plan)):
        if plan.segment(id).index > 0:
            assert plan.frames_of(id - 1)[-1] == plan.frames_of(id)[0]


@given(plans())
def test_children_are_the_segments_that_name_the_parent(plan: Plan) -> None:
    named: dict[int, list[int]] = {id: [] for id in range(len(plan))}
    for id in range(1, len(plan)):
        named[plan.segment(id).parent].append(id)
    assert {id: plan.children(id) for id in range(len(plan))} == named


@given(plans())
def test_ids_are_depth_major_and_frames_follow_from_first_frame_and_stride(plan: Plan) -> None:
    ids = [(plan.segment(id).depth, plan.segment(id).index) for id in range(len(plan))]
    assert ids == [(depth, index) for depth, count in enumerate(plan.counts) for index in range(count)]
    for id in range(len(plan)):
        segment, frames = plan.segment(id), plan.frames_of(id)
        assert frames.shape == (plan.length,)
        assert frames.dtype == np.int64
        assert (frames == segment.first_frame + segment.stride * np.arange(plan.length)).all()


@given(st.integers(1, 200), st.integers(3, 12), st.data())
def test_a_chain_of_windows_covers_the_frames_each_given_the_end_of_the_one_before(
    frames: int, length: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(1, length - 1))
    plan = Plan.autoregressive(frames, length, overlap)
    assert (plan.kind, plan.frames, plan.length, plan.depth) == ("autoregressive", frames, length, 1)
    assert plan.counts == [len(plan)]
    generated: list[int] = []
    for id in range(len(plan)):
        segment, numbers = plan.segment(id), plan.frames_of(id).tolist()
        assert (segment.depth, segment.index, segment.stride, segment.parent) == (0, id, 1, id - 1)
        assert numbers == list(range(id * (length - overlap), id * (length - overlap) + length))
        assert plan.known(id) == (list(range(overlap)) if id else [])
        assert plan.children(id) == ([id + 1] if id + 1 < len(plan) else [])
        assert all(plan.origin_of(frame) == id for frame in numbers[overlap if id else 0 :])
        generated += numbers[overlap if id else 0 :]
    assert generated == list(range(len(generated)))
    assert frames <= len(generated) < max(frames, length) + length - overlap


@given(plans())
def test_locals_know_the_frames_that_their_parent_gives(plan: Plan) -> None:
    assert plan.kind == "tree"
    assert plan.known(0) == []
    for id in range(1, len(plan)):
        given_frames = set(plan.frames_of(plan.segment(id).parent).tolist())
        assert plan.known(id) == [i for i, frame in enumerate(plan.frames_of(id).tolist()) if frame in given_frames]


@pytest.mark.parametrize(
    ("arguments", "found"),
    [((0, 16, 8), "0"), ((10, 2, 1), "2"), ((10, 16, 0), "0"), ((10, 16, 16), "16"), ((10, 16, -(2**63)), "-9223")],
)
def test_an_impossible_chain_is_refused_with_what_to_do(arguments: tuple[int, int, int], found: str) -> None:
    with pytest.raises(ValueError, match=rf"^expected .*; found {found}.*; \w+"):
        Plan.autoregressive(*arguments)


def test_plans_print_what_makes_them() -> None:
    assert repr(Plan(1024, 16)) == "Plan(frames=1024, length=16, depth=3)"
    assert repr(Plan.autoregressive(100, 16, 4)) == "Plan.autoregressive(frames=100, length=16, overlap=4)"


def test_frames_of_outlives_its_plan() -> None:
    frames = Plan(1024, 16).frames_of(7)
    assert frames.tolist() == list(range(15, 31))


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ((0, 16), "0"),
        ((-5, 16), "-5"),
        ((10, 2), "2"),
        ((10, 16, 0), "0"),
        ((10, 16, -1), "-1"),
        ((3377, 16, 3), "3377"),
        ((10, 16, 100), "100"),
    ],
)
def test_an_impossible_plan_is_refused_with_what_to_do(arguments: tuple[int, ...], found: str) -> None:
    with pytest.raises(ValueError, match=rf"^expected .*; found .*{re.escape(found)}.*; \w+"):
        Plan(*arguments)


def test_too_many_frames_for_a_tree_name_the_depth_that_would_do() -> None:
    with pytest.raises(ValueError, match=r"at most 3376 frames.*found 3377.*depth of 4"):
        Plan(3377, 16, 3)


def test_unknown_segments_and_frames_are_refused() -> None:
    plan = Plan(100, 16)
    for id in (-1, len(plan)):
        for ask in (plan.segment, plan.frames_of, plan.children):
            with pytest.raises(ValueError, match=rf"expected a segment id.*found {id}"):
                ask(id)
    for frame in (-1, 226):
        with pytest.raises(ValueError, match=rf"expected a frame.*found {frame}"):
            plan.origin_of(frame)


def test_a_plan_of_ten_to_the_16_segments_costs_no_more_than_a_small_one() -> None:
    """Anything that grew with the number of segments would end neither in this time nor in this memory."""
    frames = 4 * 10**17
    plan = Plan(frames, 16)
    assert len(plan) > 10**16
    assert plan.origin_of(frames - 1) == len(plan) - 1
