"""The cost model of a device: its steps by batch size, and the batch size it does best."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nuwaxl.engine._core import CostModel

times = st.floats(1e-3, 10.0)


@given(st.dictionaries(st.integers(1, 40), times, min_size=1, max_size=6))
def test_steps_pass_through_what_was_measured_and_are_never_negative(measured: dict[int, float]) -> None:
    sizes = sorted(measured)
    cost = CostModel(sizes, [measured[size] for size in sizes], decode_s=0.5)
    assert (cost.batch_sizes, cost.steps_s, cost.decode_s) == (sizes, [measured[s] for s in sizes], 0.5)
    assert all(cost.step_s(size) == pytest.approx(measured[size]) for size in sizes)
    for batch in range(1, 60):
        assert cost.step_s(batch) > 0
        if len(sizes) == 1:
            assert cost.step_s(batch) == pytest.approx(measured[sizes[0]] * batch / sizes[0])


@given(st.dictionaries(st.integers(1, 40), times, min_size=1, max_size=6), st.integers(1, 50))
def test_the_best_batch_is_the_smallest_within_two_percent_and_the_widest_the_largest(
    measured: dict[int, float], most: int
) -> None:
    sizes = sorted(measured)
    cost = CostModel(sizes, [measured[size] for size in sizes])
    shares = {batch: cost.step_s(batch) / batch for batch in range(1, most + 1)}
    good = [batch for batch, share in shares.items() if share <= 1.02 * min(shares.values())]
    assert (cost.best_batch(most), cost.widest_batch(most)) == (min(good), max(good))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (([], []), "found 0 sizes and 0 times"),
        (([1, 2], [1.0]), "found 2 sizes and 1 times"),
        (([0], [1.0]), "batch sizes from 1 up.*found 0 after 0"),
        (([4, 4], [1.0, 1.0]), "found 4 after 4"),
        (([1], [0.0]), "step times of 1e-9 to 1e9 s; found 0 s"),
        (([1], [-1.0]), "step times of 1e-9 to 1e9 s; found -1 s"),
        (([1], [1e-12]), "step times of 1e-9 to 1e9 s; found 1e-12 s"),
        (([1], [1.7e308]), "step times of 1e-9 to 1e9 s; found 1.7e\\+308 s"),
        (([1], [float("nan")]), "step times of 1e-9 to 1e9 s; found nan s"),
        (([1], [1.0], float("inf")), "a decode time of 0 to 1e9 s; found inf s"),
        (([1], [1.0], -0.5), "a decode time of 0 to 1e9 s; found -0.5 s"),
    ],
)
def test_impossible_measurements_are_refused(arguments: tuple[object, ...], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        CostModel(*arguments)  # type: ignore[arg-type]


def test_a_batch_has_at_least_one_segment() -> None:
    cost = CostModel([1], [1.0])
    with pytest.raises(ValueError, match="batch of at least 1; found 0"):
        cost.step_s(0)
    for ask in (cost.best_batch, cost.widest_batch):
        with pytest.raises(ValueError, match="max_batch of 1 to 65536; found 0"):
            ask(0)


def test_a_batch_beyond_all_memory_is_refused_at_once() -> None:
    cost = CostModel([1], [1.0])
    for ask in (cost.best_batch, cost.widest_batch):
        with pytest.raises(ValueError, match="max_batch of 1 to 65536; found 1099511627776"):
            ask(2**40)
