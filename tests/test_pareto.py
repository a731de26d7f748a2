"""Dominance, crowding and hypervolume against small cases by hand and against definitions by brute force."""

import itertools
import math

import numpy as np
import pytest

from reco_tune.pareto import Fronts, best_first, contested, crowding, goes_on, hypervolume, knee, non_dominated, ranks


def brute_force(points):
    return [not any(np.all(other <= point) and np.any(other < point) for other in points) for point in points]


@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_non_dominated_is_the_definition(objectives):
    points = (
        np.random.default_rng(0).integers(0, 6, (60, objectives)).astype(float)
    )  # small integers: many ties and equal rows
    assert non_dominated(points).tolist() == brute_force(points)


def test_volume_of_boxes_is_that_of_a_fine_grid():
    points = np.random.default_rng(1).integers(0, 5, (8, 3))
    covered = sum(
        any(all(coordinate <= cell for coordinate, cell in zip(point, site, strict=True)) for point in points)
        for site in itertools.product(range(5), repeat=3)
    )
    assert hypervolume(points, (5, 5, 5)) == covered


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([], []),
        ([[1, 1]], [True]),
        ([[1, 2], [2, 1], [2, 2]], [True, True, False]),
        ([[1, 1], [1, 1]], [True, True]),
        ([[1, 1], [1, 2]], [True, False]),
        ([[np.nan, 0], [1, 1]], [False, True]),
        ([[-np.inf, 0], [1, 1]], [False, True]),
    ],
    ids=[
        "none",
        "one",
        "two-ends",
        "equal-stand-together",
        "weakly-dominated",
        "nan-is-no-point",
        "infinite-is-no-point",
    ],
)
def test_non_dominated(points, expected):
    assert non_dominated(np.reshape(points, (-1, 2))).tolist() == expected


@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_contested_is_the_definition(objectives):
    random = np.random.default_rng(2)
    best = random.integers(0, 20, (60, objectives)).astype(float)
    worst = best + random.integers(0, 4, best.shape)  # ends of intervals that meet, too
    expected = [
        any((other <= own).all() for place, other in enumerate(best) if place != row) for row, own in enumerate(worst)
    ]
    assert contested(best, worst).tolist() == expected and (objectives == 1 or 0 < sum(expected) < 60)
    assert contested(best, worst[:5]).tolist() == expected[:5]


def test_without_intervals_only_equal_points_contest_each_other():
    front = np.array([[1.0, 2], [2, 1], [2, 1]])
    assert contested(front, front).tolist() == [False, True, True]
    assert contested(np.empty((0, 2)), np.empty((0, 2))).tolist() == []


def test_ranks_peel_the_fronts():
    assert ranks([[1, 1], [2, 2], [1, 3], [3, 3], [np.nan, 0]]).tolist() == [0, 1, 1, 2, 3]


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_ranks_are_the_fronts_that_are_left_when_those_before_are_taken_away(objectives):
    points = np.random.default_rng(objectives).integers(0, 9, size=(200, objectives)).astype(float)  # many equal ones
    points[::23, 0] = np.nan
    expected, left = np.zeros(len(points), dtype=int), np.isfinite(points).all(axis=1)
    rank = 0
    while left.any():
        rows = np.flatnonzero(left)
        front = rows[brute_force(points[rows])]
        expected[front], left[front] = rank, False
        rank += 1
    expected[::23] = rank
    assert rank > 3 and ranks(points).tolist() == expected.tolist()


def test_crowding_is_infinite_at_the_ends_and_half_the_box_between():
    assert crowding([[0, 4], [1, 2], [4, 0]]).tolist() == [np.inf, 2.0, np.inf]


def test_best_first_is_by_rank_then_by_room_then_as_they_stand():
    points = [
        [2, 2],
        [0, 4],
        [1.9, 2.2],
        [np.nan, 0],
        [4, 0],
        [3, 1],
        [5, 5],
    ]  # the front from left to right: 1, (2), 0, 5, 4
    order = best_first(points).tolist()
    assert order[:2] == [1, 4] and set(order[2:5]) == {0, 2, 5} and order[5:] == [6, 3]
    assert best_first([[0, 1], [1, 0]]).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("points", "volume"),
    [([], 0), ([[0, 0]], 4), ([[0, 1], [1, 0]], 3), ([[0, 1], [1, 0], [1, 1]], 3), ([[3, 0]], 0), ([[np.nan, 0]], 0)],
    ids=["none", "one-box", "an-l", "dominated-adds-nothing", "outside-the-reference", "nan-adds-nothing"],
)
def test_hypervolume(points, volume):
    assert hypervolume(np.reshape(points, (-1, 2)), (2, 2)) == volume


def test_a_reference_of_other_objectives_is_refused():
    with pytest.raises(ValueError, match="reference point has 3 objectives"):
        hypervolume([[0, 0]], (1, 1, 1))


@pytest.mark.parametrize(
    ("points", "row"),
    [
        ([(0, 10), (2, 2), (10, 0)], 1),
        ([(0, 10), (9, 9), (2, 2), (3, 1), (10, 0)], 2),
        ([(0, 1), (0.5, 0.5), (1, 0)], None),
        ([(0, 1), (1, 0)], None),
        ([(0, 1), (0.9, 0.9), (1, 0)], None),
        ([(0, 10), (math.nan, 0), (2, 2), (10, 0)], 2),
        ([], None),
    ],
    ids=["bend", "dominated-row", "straight", "two", "bulges-out", "not-finite", "none"],
)
def test_knee(points, row):
    assert knee(points) == row


def test_a_knee_needs_two_objectives():
    with pytest.raises(ValueError, match="two objectives"):
        knee([(1, 2, 3)])


def test_two_objectives_with_ties_agree_with_the_definition():
    points = (
        np.random.default_rng(5).integers(0, 6, size=(300, 2)).astype(float)
    )  # many equal rows and equal coordinates
    points[::17, 0] = np.nan
    expected = [bool(np.isfinite(point).all()) for point in points]
    finite = points[np.isfinite(points).all(axis=1)]
    known = iter(brute_force(finite))
    assert list(non_dominated(points)) == [next(known) if ok else False for ok in expected]


@pytest.mark.parametrize("levels", [4, 1000], ids=["many-ties", "few-ties"])
@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_points_that_come_one_by_one_are_judged_as_all_at_once(objectives: int, levels: int) -> None:
    """Rows come in any order, as runs reach a rung; each is judged when it comes, among those that are there."""
    random = np.random.default_rng(objectives)
    points = random.integers(0, levels, (90, objectives)).astype(float)
    order = random.permutation(len(points))
    fronts = Fronts(np.sort(order[:20]), points[np.sort(order[:20])])
    for count in range(20, len(order)):
        row = int(order[count])
        fronts.insert(row, points[row])
        if count % 40 == 0:
            gone = int(order[count - 5])
            fronts.remove(gone)
            fronts.insert(gone, points[gone])
        there = np.sort(order[: count + 1])
        place = int(np.flatnonzero(there == row)[0])
        assert fronts.goes_on(row, points[row], 3) == goes_on(points[there], place, 3), (count, row)
    assert len(fronts) == len(points)
    beaten = [sum(np.all(a <= b) and np.any(a < b) for a in points) for b in points]
    assert [fronts.dominating(point) for point in points] == beaten
