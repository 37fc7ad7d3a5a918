"""Pareto fronts, ranks, crowding, hypervolume and what more points would add to it.

Objectives are float [n, m], a row a point, finite; larger is better in every column. A row with a
NaN was never measured: it is on no front, its rank is the last, it dominates nothing.
"""

from __future__ import annotations

from bisect import bisect_left

import numpy as np

BLOCK = 64  # points of `_filter` between two clearings of what they dominate
SAMPLE = 4096  # points, by the front of which most of many others are left out
MOST_PIVOTS = 256  # of that front


def front(objectives: np.ndarray) -> np.ndarray:
    """Which points no other point dominates: bool [n]; every copy of such a point counts.

    Up to three objectives take O(n log n) for the sorting and a sweep over the points (Kung, Luccio
    and Preparata, 1975); more take O(n k) comparisons for a front of k points. Memory is O(n).
    Raises ValueError unless objectives are [n, m] with m at least 1.
    """
    objectives = _points(objectives)
    mask = np.zeros(len(objectives), bool)
    rows = np.flatnonzero(~np.isnan(objectives).any(axis=1))
    if len(rows):
        rows = rows[_hopeful(objectives[rows])]
        mask[rows] = _front_of(objectives[rows])
    return mask


def _hopeful(points: np.ndarray) -> np.ndarray:
    """Rows of points [n, m] without NaN that the front of a few of them does not dominate: int [.].

    Those that dominate much go first, so that the others meet few.
    """
    rows = np.arange(len(points))
    if len(points) <= SAMPLE:
        return rows
    some = points[np.random.default_rng(0).integers(len(points), size=SAMPLE)]
    below = some.argsort(axis=0).argsort(axis=0).prod(axis=1, dtype=float)
    pivots = np.flatnonzero(_front_of(some))
    columns = np.ascontiguousarray(points.T)
    for pivot in some[pivots[np.argsort(-below[pivots])[:MOST_PIVOTS]], :, None]:
        keep = (columns > pivot).any(axis=0) | (columns == pivot).all(axis=0)
        rows, columns = rows[keep], np.compress(keep, columns, axis=1)
    return rows


def _front_of(points: np.ndarray) -> np.ndarray:
    """`front` of points without NaN, by the way that is faster."""
    return _sweep(points) if points.shape[1] <= 3 else _filter(points)


def ranks(objectives: np.ndarray) -> np.ndarray:
    """The front that each point is on once those before it are taken away: int [n], 0 the first.

    A point's rank is the length of the longest chain of points that dominate one another above it.
    Rows with NaN have the rank after the last, at least 1. O(n^2) comparisons, O(n) memory.
    """
    objectives = _points(objectives)
    valid = ~np.isnan(objectives).any(axis=1)
    points, inverse = np.unique(-objectives[valid], axis=0, return_inverse=True)  # best first
    depth = np.arange(len(points))
    if points.shape[1] > 1:  # else each is below all before it
        for i, point in enumerate(points[1:], start=1):
            above = (points[:i] <= point).all(axis=1)  # negated: smaller is better here
            depth[i] = depth[:i][above].max(initial=-1) + 1
    result = np.full(len(objectives), depth.max(initial=0) + 1)
    result[valid] = depth[inverse.ravel()]
    return result


def crowding(objectives: np.ndarray, rank: np.ndarray | None = None) -> np.ndarray:
    """The room around each point within its own front: float [n], larger is lonelier.

    NSGA-II (Deb et al., 2002, section III-B): for each objective the distance between the two
    neighbours on the point's front as a share of that front's extent, summed; infinite at the ends.
    Rows with NaN have 0. rank: `ranks(objectives)`, where that is known.
    """
    objectives = _points(objectives)
    rank = ranks(objectives) if rank is None else rank
    distances = np.zeros(len(objectives))
    valid = ~np.isnan(objectives).any(axis=1)
    for level in np.unique(rank[valid]):
        members = np.flatnonzero(valid & (rank == level))
        for column in objectives[members].T:
            order = np.argsort(column, kind="stable")
            values = column[order]
            ends, inner = members[order[[0, -1]]], members[order[1:-1]]
            if values[-1] > values[0]:
                distances[inner] += (values[2:] - values[:-2]) / (values[-1] - values[0])
            distances[ends] = np.inf
    return distances


def hypervolume(objectives: np.ndarray, reference: np.ndarray) -> float:
    """The volume that the points dominate above `reference` [m], exact; 0 for no points.

    Each box counts with what it adds to the boxes before it, as in WFG (While et al., 2012). Made
    for 1 to 4 objectives: about k log k for two on a front of k points, k^2 for three.
    Raises ValueError for a reference of another width or one that is not finite.
    """
    objectives, reference = _referenced(objectives, reference)
    counted = front(objectives) & (objectives > reference).all(axis=1)
    return _volume(objectives[counted] - reference)


def improvement(
    candidates: np.ndarray, objectives: np.ndarray, reference: np.ndarray
) -> np.ndarray:
    """What each candidate alone would add to `hypervolume(objectives, reference)`: float [n].

    candidates: [n, m]; 0 for one with a NaN. Exact: a candidate's share of every box of `boxes`.
    Raises ValueError as `hypervolume` does.
    """
    candidates = _points(candidates)
    lower, upper = boxes(objectives, reference)
    shares = np.ones((len(candidates), len(lower)))
    for values, low, high in zip(candidates.T, lower.T, upper.T, strict=True):
        shares *= np.maximum(np.minimum(values[:, None], high) - low, 0)
    return np.where(np.isnan(candidates).any(axis=1), 0, shares.sum(axis=1))


def boxes(objectives: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The region above `reference` that no point dominates, as boxes that do not overlap.

    (lower, upper), both [boxes, m], `upper` infinite where nothing bounds the box. They grow one
    point at a time by the local upper bounds of Lacour, Klamroth and Fonseca (Computers &
    Operations Research 79, 2017): about 2 k boxes for a front of k points and three objectives,
    k + 1 for two. Raises ValueError as `hypervolume` does.
    """
    objectives, reference = _referenced(objectives, reference)
    points = objectives[front(objectives) & (objectives > reference).all(axis=1)]
    # negated, smaller is better: the corners of what is left are the local upper bounds, and what
    # they dominate is cut in the same way, with the corners as points and -reference as the bound
    corners, _ = _local_bounds(np.unique(-points, axis=0), -reference)
    bounds, owners = _local_bounds(-corners, np.full(len(reference), np.inf))
    lower, upper = bounds.copy(), bounds.copy()
    lower[:, 0], upper[:, 0] = owners[:, 0, 0], np.inf
    for j in range(1, len(reference)):
        lower[:, j] = owners[:, :j, j].max(axis=1)
    kept = (lower < upper).all(axis=1)
    return lower[kept], upper[kept]


def _local_bounds(points: np.ndarray, bound: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The local upper bounds of points [k, m] below `bound` [m], smaller is better.

    ([u, m], and the points that define each: [u, m, m], -inf where none does in that objective)."""
    m = len(bound)
    bounds = bound[None]
    owners = np.full((1, m, m), -np.inf)
    owners[0, range(m), range(m)] = bound
    for point in points:
        inside = (point < bounds).all(axis=1)
        old, own = bounds[inside], owners[inside]
        new_bounds, new_owners = [bounds[~inside]], [owners[~inside]]
        for j in range(m):
            others = np.delete(own[:, :, j], j, axis=1).max(axis=1, initial=-np.inf)
            rows = point[j] >= others
            new_bounds.append(old[rows])
            new_bounds[-1][:, j] = point[j]
            new_owners.append(own[rows])
            new_owners[-1][:, j] = point
        bounds, owners = np.concatenate(new_bounds), np.concatenate(new_owners)
    return bounds, owners


def _volume(sides: np.ndarray) -> float:
    """The volume of the union of boxes from the origin to `sides` [k, m], all positive."""
    if not len(sides):
        return 0.0
    if sides.shape[1] == 1:
        return float(sides.max())
    sides = sides[np.argsort(-sides[:, -1], kind="stable")]  # deepest in the last objective first
    bases, depths = sides[:, :-1], sides[:, -1]
    if sides.shape[1] == 2:  # a staircase: every step adds its width beyond the widest so far
        widths = np.maximum.accumulate(bases[:, 0])
        return float(np.diff(widths, prepend=0.0) @ depths)
    total = 0.0
    for i, (base, depth) in enumerate(zip(bases, depths, strict=True)):
        overlaps = np.minimum(bases[:i], base)
        total += depth * (base.prod() - _volume(overlaps[front(overlaps)]))
    return float(total)


def _sweep(points: np.ndarray) -> np.ndarray:
    """`front` of [n, 1 to 3] without NaN: down the first objective, a staircase of the others."""
    n, m = points.shape
    order = np.lexsort(-points.T[::-1])
    points = np.hstack([points[order], np.zeros((n, 3 - m))])
    new = np.ones(n, bool)
    new[1:] = (points[1:] != points[:-1]).any(axis=1)  # copies stand next to each other
    kept = []
    ys, zs = [], []  # the nondominated (y, z) so far: y rises, z falls
    for y, z in points[new, 1:].tolist():
        i = bisect_left(ys, y)
        covered = i < len(ys) and zs[i] >= z
        kept.append(not covered)
        if not covered:
            j = i + (i < len(ys) and ys[i] == y)
            while i and zs[i - 1] <= z:
                i -= 1
            ys[i:j], zs[i:j] = [y], [z]
    mask = np.empty(n, bool)
    mask[order] = np.array(kept)[np.cumsum(new) - 1]
    return mask


def _filter(points: np.ndarray) -> np.ndarray:
    """`front` of [n, m] without NaN: the best points left, a block at a time, remove all others.

    By the sum of dense ranks: a dominating point stands strictly before those that it dominates, so
    a block's points that outlive the block are on the front.
    """
    places = sum(np.unique(column, return_inverse=True)[1] for column in points.T)
    order = np.argsort(-places)
    columns = np.ascontiguousarray(points[order].T)
    mask = np.zeros(len(points), bool)
    while len(order):
        keep = np.ones(len(order), bool)
        for pivot in columns[:, :BLOCK].T[:, :, None]:
            keep &= (columns > pivot).any(axis=0) | (columns == pivot).all(axis=0)
        mask[order[:BLOCK][keep[:BLOCK]]] = True
        keep[:BLOCK] = False
        order, columns = order[keep], np.compress(keep, columns, axis=1)
    return mask


def _referenced(objectives: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    objectives, reference = _points(objectives), np.asarray(reference, float)
    if reference.shape != objectives.shape[1:] or not np.isfinite(reference).all():
        raise ValueError(
            f"the reference needs {objectives.shape[1]} finite numbers, one an objective and each "
            f"worse than the points that shall count; got {reference.tolist()}"
        )
    return objectives, reference


def _points(objectives: np.ndarray) -> np.ndarray:
    objectives = np.asarray(objectives, float)
    if objectives.ndim != 2 or not objectives.shape[1]:
        raise ValueError(
            f"objectives are [points, objectives] with at least one objective; got the shape "
            f"{objectives.shape}; reshape a single objective with values[:, None]"
        )
    return objectives
