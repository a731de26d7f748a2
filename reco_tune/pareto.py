"""Pure functions of points: dominance, crowding, hypervolume, knee, and which runs continue at a rung.

Points are rows [N, M] of M objectives, all to be MINIMISED (negate what is maximised). Knows nothing of runs or
trials. A row with a value that is not finite counts as dominated by every point and covers no volume.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


def dominating(points: ArrayLike, point: ArrayLike) -> NDArray[np.bool_]:
    """Whether each row dominates a point [M]: it is at most as large in every objective and smaller in at least
    one.
    """
    points_NM, point_M = _points(points), np.asarray(point, dtype=np.float64)
    return np.asarray((points_NM <= point_M).all(axis=1) & (points_NM < point_M).any(axis=1))


def non_dominated(points: ArrayLike) -> NDArray[np.bool_]:
    """Whether each row is dominated by no other. Equal rows do not dominate each other."""
    points_NM = _points(points)
    kept: NDArray[np.bool_] = np.asarray(np.isfinite(points_NM).all(axis=1))
    if points_NM.shape[1] == 2:
        return _non_dominated_pairs(points_NM, kept)
    # In lexicographic order a row can only be dominated by an earlier one, so a running front is enough: O(N * front).
    front: list[NDArray[np.float64]] = []
    for row in np.lexsort(points_NM.T[::-1]):
        point = points_NM[row]
        if not kept[row]:
            continue
        if front and dominating(front, point).any():
            kept[row] = False
            continue
        front.append(point)
    return kept


def contested(best: ArrayLike, worst: ArrayLike) -> NDArray[np.bool_]:
    """For each point in `worst`, whether another point could still be at most as large in every objective: the other
    one at the best end of its interval, this one at its worst end.

    Args:
        best: all points [N, M] at the small ends of their intervals.
        worst: the points in question [K, M], which are among them, at the large ends.
    """
    best_NM, worst_KM = _points(best), _points(worst)
    if best_NM.shape[1] == 2:
        return _contested_pairs(best_NM, worst_KM)
    return np.array(
        [(best_NM <= worst_M).all(axis=1).sum() > 1 for worst_M in worst_KM], dtype=bool
    )  # each point counts itself once


def ranks(points: ArrayLike) -> NDArray[np.int64]:
    """Rank of every row: 0 for the non-dominated set, 1 for the non-dominated set of the rest, and so on. Rows that
    are not finite come last.
    """
    points_NM = _points(points)
    finite_N: NDArray[np.bool_] = np.asarray(np.isfinite(points_NM).all(axis=1))
    rank_N = np.zeros(len(points_NM), dtype=np.int64)
    if finite_N.any():
        distinct_DM, which_N = np.unique(points_NM[finite_N], axis=0, return_inverse=True)  # in lexicographic order
        rank_D = _ranks_of_pairs(distinct_DM) if distinct_DM.shape[1] == 2 else _ranks_in_order(distinct_DM)
        rank_N[finite_N] = rank_D[which_N.ravel()]
        rank_N[~finite_N] = rank_D.max() + 1
    return rank_N


def crowding(points: ArrayLike) -> NDArray[np.float64]:
    """Crowding distance of NSGA-II within one front: the normalised side lengths of the box to the neighbours.
    Infinite at the ends.
    """
    points_NM = _points(points)
    distance_N = np.zeros(len(points_NM))
    for values in points_NM.T:
        order = np.argsort(values, kind="stable")
        span = values[order[-1]] - values[order[0]] if len(order) else 0.0
        distance_N[order[:1]] = distance_N[order[-1:]] = np.inf
        if span > 0:
            distance_N[order[1:-1]] += (values[order[2:]] - values[order[:-2]]) / span
    return distance_N


def best_first(points: ArrayLike) -> NDArray[np.int64]:
    """Row order of non-dominated sorting: by rank, within a front the least crowded first, ties in the given
    order.
    """
    points_NM = _points(points)
    rank_N, sparseness_N = ranks(points_NM), np.zeros(len(points_NM))
    finite_N = np.isfinite(points_NM).all(axis=1)
    for rank in np.unique(rank_N[finite_N]):
        front = np.flatnonzero(rank_N == rank)
        sparseness_N[front] = crowding(points_NM[front])
    return np.lexsort((-sparseness_N, rank_N))


def deciding_rungs(rungs: int, grace_rungs: int, reduction_factor: int) -> list[int]:
    """Rungs (counted from 1) at which runs are judged: grace, grace·η, grace·η² and so on. Never the last rung, where
    pruning would save nothing.
    """
    found = []
    while grace_rungs < rungs:
        found.append(grace_rungs)
        grace_rungs *= reduction_factor
    return found


def goes_on(points: ArrayLike, row: int, reduction_factor: int) -> bool:
    """Whether a row is among the best share 1 / `reduction_factor` (rounded up) of all points [N, M] known at its
    rung, itself included.

    The order is by rank, then the least crowded of a front. All objectives are to be minimised. The first front is
    always kept as a whole: its points may lie on the final frontier, and every point of that is wanted.
    """
    order = best_first(points)
    return row in order[: max(math.ceil(len(order) / reduction_factor), non_dominated(points).sum())]


class Fronts:
    """Points that arrive one at a time, kept sorted by rank (ENLU, Li et al. 2014).

    A new point finds its front by bisection and pushes the points that it dominates to the next front. So nothing is
    sorted again. It gives the same answers as `goes_on` on all points at once. Every point must be finite.
    """

    def __init__(self, rows: ArrayLike = (), points: ArrayLike = ()) -> None:
        """
        Args:
            rows: numbers [N] of the initial points [N, M]. They break ties.
        """
        row_N, points_NM = np.asarray(rows, dtype=np.int64), _points(points)
        rank_N = ranks(points_NM)
        self._fronts = [
            (row_N[rank_N == rank], points_NM[rank_N == rank]) for rank in range(int(rank_N.max(initial=-1)) + 1)
        ]

    def __len__(self) -> int:
        return sum(len(row_K) for row_K, _ in self._fronts)

    def insert(self, row: int, point: ArrayLike) -> None:
        moving_K, moving_KM = np.array([row], dtype=np.int64), _points(np.asarray(point, dtype=np.float64)[None])
        for rank in range(self._rank(moving_KM[0]), len(self._fronts)):
            row_N, points_NM = self._fronts[rank]
            beaten_N = (moving_KM[:, None] <= points_NM).all(axis=2) & (moving_KM[:, None] < points_NM).any(axis=2)
            beaten_N = beaten_N.any(axis=0)
            self._fronts[rank] = (
                np.concatenate([row_N[~beaten_N], moving_K]),
                np.concatenate([points_NM[~beaten_N], moving_KM]),
            )
            moving_K, moving_KM = row_N[beaten_N], points_NM[beaten_N]
            if not len(moving_K):
                return
        self._fronts.append((moving_K, moving_KM))

    def remove(self, row: int) -> None:
        """Removes a point and sorts the others again. This is rare."""
        rows = np.concatenate([row_N for row_N, _ in self._fronts])
        points_NM = np.concatenate([points_NM for _, points_NM in self._fronts])
        self.__init__(rows[rows != row], points_NM[rows != row])  # type: ignore[misc]

    def goes_on(self, row: int, point: ArrayLike, reduction_factor: int) -> bool:
        """`goes_on` for a point that was inserted."""
        rank = self._rank(np.asarray(point, dtype=np.float64))
        kept = max(math.ceil(len(self) / reduction_factor), len(self._fronts[0][0]))
        row_N, points_NM = self._fronts[rank]
        before = sum(len(others_K) for others_K, _ in self._fronts[:rank])
        if before >= kept or before + len(row_N) <= kept:
            return before < kept
        order = np.argsort(row_N)
        best_first = row_N[order][np.argsort(-crowding(points_NM[order]), kind="stable")]
        return row in best_first[: kept - before]

    def dominating(self, point: ArrayLike) -> int:
        """Number of points that dominate the given one."""
        return sum(int(dominating(points_NM, point).sum()) for _, points_NM in self._fronts)

    def _rank(self, point_M: NDArray[np.float64]) -> int:
        """Index of the first front that does not dominate a point. Bisection works, because a point dominated by one
        front is dominated by all fronts before it.
        """
        rank, end = 0, len(self._fronts)
        while rank < end:
            middle = (rank + end) // 2
            if dominating(self._fronts[middle][1], point_M).any():
                rank = middle + 1
            else:
                end = middle
        return rank


def hypervolume(points: ArrayLike, reference: ArrayLike) -> float:
    """Volume between the points and the reference point that the points dominate (exact, by slicing the last
    objective).
    """
    points_NM, reference_M = _points(points), np.asarray(reference, dtype=np.float64)
    if points_NM.shape[1] != len(reference_M):
        raise ValueError(f"the reference point has {len(reference_M)} objectives, the points have {points_NM.shape[1]}")
    inside = np.isfinite(points_NM).all(axis=1) & (points_NM < reference_M).all(axis=1)
    return _volume(points_NM[inside], reference_M)


class SpeedFVD(NamedTuple):
    """Runs as points of the frontier of speed and FVD."""

    points_N2: NDArray[np.float64]
    """(-speed-up, FVD), both to be minimised."""
    reference: tuple[float, float]
    """Reference point of the hypervolume: speed-up 0 and the largest FVD. So a run that is worse than all before
    moves it.
    """


def speed_fvd(speedup_N: ArrayLike, fvd_N: ArrayLike) -> SpeedFVD:
    """Speed-ups and FVDs of runs as points, with the reference point of every hypervolume in this project."""
    fvd = np.asarray(fvd_N, dtype=np.float64)
    return SpeedFVD(
        np.column_stack([-np.asarray(speedup_N, dtype=np.float64), fvd]), (0.0, float(fvd.max(initial=0.0)))
    )


def knee(points: ArrayLike) -> int | None:
    """Row of the knee of a two-objective front: the point farthest below the line between the ends of the front. Each
    objective is scaled to its range on the front.

    Dominated rows are ignored. None if the front has fewer than three points, or none of them lies below the line.
    """
    points_N2 = _points(points)
    if points_N2.size and points_N2.shape[1] != 2:
        raise ValueError(f"a knee needs two objectives, the points have {points_N2.shape[1]}")
    rows = np.flatnonzero(non_dominated(points_N2))
    if len(rows) < 3:
        return None
    front = points_N2[rows]
    low, span = front.min(axis=0), np.ptp(front, axis=0)
    if (span == 0).any():
        return None
    below = 1 - ((front - low) / span).sum(
        axis=1
    )  # the ends of a front are (0, 1) and (1, 0): the line between them is x + y = 1
    best = int(np.argmax(below))
    return int(rows[best]) if below[best] > 1e-9 else None


def _non_dominated_pairs(points_N2: NDArray[np.float64], finite_N: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The common case of two objectives. In order of the first, a point is non-dominated if its second is below all
    before it. O(N log N).
    """
    kept = np.zeros(len(points_N2), dtype=bool)
    if finite_N.any():
        distinct_D2, which_N = np.unique(points_N2[finite_N], axis=0, return_inverse=True)  # in lexicographic order
        second_D = distinct_D2[:, 1]
        stands_D = np.append(True, second_D[1:] < np.minimum.accumulate(second_D)[:-1])
        kept[finite_N] = stands_D[which_N.ravel()]
    return kept


def _ranks_of_pairs(distinct_D2: NDArray[np.float64]) -> NDArray[np.int64]:
    """Ranks of distinct points in lexicographic order. A point's rank is the first front whose last point has a
    larger second coordinate. O(N log N).
    """
    last: list[float] = []
    """Second coordinate of the last point of each front."""
    rank_D = np.empty(len(distinct_D2), dtype=np.int64)
    for row, second in enumerate(distinct_D2[:, 1].tolist()):
        rank = bisect_right(last, second)
        last[rank : rank + 1] = [second]
        rank_D[row] = rank
    return rank_D


def _ranks_in_order(distinct_DM: NDArray[np.float64]) -> NDArray[np.int64]:
    """Ranks of distinct points in lexicographic order (ENS-BS, Zhang et al. 2015).

    Only earlier points can dominate a point. A point dominated within a front is also dominated within all fronts
    before it. So bisection finds the first front that does not dominate the point.
    """
    others_DM = distinct_DM[:, 1:]
    fronts: list[NDArray[np.float64]] = []
    """Points of each front, with spare rows."""
    sizes: list[int] = []
    rank_D = np.empty(len(distinct_DM), dtype=np.int64)
    for row, point in enumerate(others_DM):
        rank, end = 0, len(fronts)
        while rank < end:
            middle = (rank + end) // 2
            if (fronts[middle][: sizes[middle]] <= point).all(axis=1).any():
                rank = middle + 1
            else:
                end = middle
        if rank == len(fronts):
            fronts.append(np.empty((4, others_DM.shape[1])))
            sizes.append(0)
        elif sizes[rank] == len(fronts[rank]):
            fronts[rank] = np.concatenate([fronts[rank], np.empty_like(fronts[rank])])
        fronts[rank][sizes[rank]] = point
        sizes[rank] += 1
        rank_D[row] = rank
    return rank_D


def _contested_pairs(best_N2: NDArray[np.float64], worst_K2: NDArray[np.float64]) -> NDArray[np.bool_]:
    """The case of two objectives. A point is contested if, among the points that reach its worst value in the first
    objective, at least two also reach it in the second. (One of them is the point itself.) O(N log N).
    """
    first_N, second_N = best_N2[np.argsort(best_N2[:, 0])].T
    least_N = np.minimum.accumulate(np.append(np.inf, second_N))  # minimum over the points before each
    second_least_N = np.minimum.accumulate(np.append(np.inf, np.maximum(least_N[:-1], second_N)))
    return np.asarray(second_least_N[np.searchsorted(first_N, worst_K2[:, 0], side="right")] <= worst_K2[:, 1])


def _volume(points_NM: NDArray[np.float64], reference_M: NDArray[np.float64]) -> float:
    if len(points_NM) == 0:
        return 0.0
    if points_NM.shape[1] == 1:
        return float(reference_M[0] - points_NM.min())
    points_NM = points_NM[non_dominated(points_NM)]
    points_NM = points_NM[np.argsort(points_NM[:, -1], kind="stable")]
    if points_NM.shape[1] == 2:  # a staircase: along a front, the first objective rises as the last one falls
        steps = np.diff(points_NM[:, 1], append=reference_M[1]) * (reference_M[0] - points_NM[:, 0])
        return float(steps.cumsum()[-1])  # added in order, so the sum is the same on any machine
    edges = np.append(points_NM[1:, -1], reference_M[-1])
    total = 0.0
    for last, (lower, upper) in enumerate(zip(points_NM[:, -1], edges, strict=True)):
        if upper > lower:
            total += (upper - lower) * _volume(points_NM[: last + 1, :-1], reference_M[:-1])
    return float(total)


def _points(points: ArrayLike) -> NDArray[np.float64]:
    points_NM = np.asarray(points, dtype=np.float64)
    if points_NM.size == 0:
        return points_NM.reshape(0, points_NM.shape[1] if points_NM.ndim == 2 else 1)
    if points_NM.ndim != 2:
        raise ValueError(f"points must be rows of objectives [N, M], got shape {points_NM.shape}")
    return points_NM
