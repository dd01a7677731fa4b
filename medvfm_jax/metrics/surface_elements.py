"""Length of the contour (2-D) or area of the surface (3-D) in the cell between neighbouring pixel centres.

A cell has 4 (8) pixel centres as corners; which of them are inside is its code. The boundary crosses an
edge between an inside and an outside corner at its middle. Corner k = (i, j[, l]) of the cell has bit 1 <<
(2 i + j), in 3-D 1 << (4 i + 2 j + l).

Each face of a cube with two crossings carries one segment; a face with four (a checkerboard) cuts off each
corner of the side that holds fewer corners of the whole cube. The segments close to polygons of 3 to 6
vertices. A polygon that is not flat has several triangulations: we take the one of largest area at unit
spacing, and of equal ones the one that makes the lexicographically first vertex an ear. These rules
reproduce, code for code, the areas of DeepMind's `surface-distance` (marching cubes; Lorensen and Cline
1987).
"""

import functools
import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Point = tuple[float, ...]


def cell_codes(mask: NDArray) -> NDArray[np.uint8]:
    """Boolean mask (n0, n1[, n2]) -> code of each cell (n0 + 1, n1 + 1[, n2 + 1]), empty outside the mask."""
    codes = np.pad(np.asarray(mask, np.uint8), 1)
    for step, axis in enumerate(
        reversed(range(mask.ndim))
    ):  # pairs of pixels, then of pairs, then of squares
        lower, upper = (np.swapaxes(codes, 0, axis)[part] for part in (slice(-1), slice(1, None)))
        codes = np.swapaxes(lower | upper << (1 << step), 0, axis)
    return np.ascontiguousarray(codes)


def element_sizes(spacing: Sequence[float]) -> NDArray[np.float64]:
    """Spacing (s0, s1[, s2]) in mm -> contour length (16,) or surface area (256,) of each code."""
    if len(spacing) == 2:
        steps = np.asarray(spacing, float)
        return np.array([sum(np.linalg.norm(v * steps) for v in vectors) for vectors in _segment_vectors()])
    s0, s1, s2 = (float(s) for s in spacing)
    scale = np.array([s1 * s2, s0 * s2, s0 * s1])
    return np.array([sum(np.linalg.norm(v * scale) for v in vectors) for vectors in _area_vectors()])


def _face_segments(cycle: list[Point], inside: list[bool]) -> list[tuple[Point, Point]]:
    """Four corners around a face, with `inside` flags -> boundary segments between edge middles."""
    middle = [tuple((a + b) / 2 for a, b in zip(cycle[k], cycle[(k + 1) % 4])) for k in range(4)]
    crossed = [k for k in range(4) if inside[k] != inside[(k + 1) % 4]]
    if len(crossed) == 4:
        return [(middle[k - 1], middle[k]) for k in range(4) if inside[k]]
    return [(middle[crossed[0]], middle[crossed[1]])] if crossed else []


def _corners_inside(code: int, dimension: int) -> dict[Point, bool]:
    corners = itertools.product((0, 1), repeat=dimension)
    return {corner: bool(code >> bit & 1) for bit, corner in enumerate(corners)}


@functools.cache
def _segment_vectors() -> list[list[NDArray]]:
    """Code (16) -> vectors of the contour segments at unit spacing."""
    table = []
    for code in range(16):
        inside = _corners_inside(code, 2)
        cycle = [(0, 0), (1, 0), (1, 1), (0, 1)]
        segments = _face_segments(cycle, [inside[corner] for corner in cycle])
        table.append([np.subtract(end, start) for start, end in segments])
    return table


def _polygons(code: int) -> list[list[Point]]:
    """Code of a cube -> closed polygons of edge middles, each from its first vertex in (i, j, l) order."""
    inside = _corners_inside(code, 3)
    # The smaller side is the one cut off, so that a mask and its complement agree.
    if sum(inside.values()) > 4:
        inside = {corner: not flag for corner, flag in inside.items()}
    neighbours: dict[Point, list[Point]] = {}
    for axis, side in itertools.product(range(3), (0, 1)):
        cycle = [tuple(np.insert((u, v), axis, side).tolist()) for u, v in ((0, 0), (1, 0), (1, 1), (0, 1))]
        for start, end in _face_segments(cycle, [inside[corner] for corner in cycle]):
            neighbours.setdefault(start, []).append(end)
            neighbours.setdefault(end, []).append(start)
    polygons, left = [], set(neighbours)
    while left:
        polygon = [min(left)]
        while onward := [point for point in neighbours[polygon[-1]] if point in left - set(polygon)]:
            polygon.append(onward[0])
        left -= set(polygon)
        polygons.append(polygon)
    return polygons


@functools.cache
def _triangulations(vertices: tuple[int, ...]) -> list[tuple[tuple[int, int, int], ...]]:
    """Vertices of a convex polygon -> all its triangulations (1, 2, 5, 14 for 3 to 6 vertices)."""
    if len(vertices) < 3:
        return [()]
    first, last = vertices[0], vertices[-1]
    return [
        (*left, (first, vertices[k], last), *right)
        for k in range(1, len(vertices) - 1)
        for left in _triangulations(vertices[: k + 1])
        for right in _triangulations(vertices[k:])
    ]


def _triangle_vectors(polygon: list[Point]) -> list[NDArray]:
    """Polygon -> area vectors (half the cross product) of its chosen triangles, at unit spacing."""
    points = np.asarray(polygon)
    best: tuple[float, bool] = (-1.0, False)
    chosen: list[NDArray] = []
    for triangles in _triangulations(tuple(range(len(polygon)))):
        vectors = [np.cross(points[b] - points[a], points[c] - points[a]) / 2 for a, b, c in triangles]
        area = round(float(sum(np.linalg.norm(v) for v in vectors)), 9)
        first_is_ear = sum(0 in triangle for triangle in triangles) == 1
        if (area, first_is_ear) > best:
            best, chosen = (area, first_is_ear), vectors
    return chosen


@functools.cache
def _area_vectors() -> list[list[NDArray]]:
    """Code (256) -> area vectors of the surface triangles at unit spacing."""
    table: list[list[NDArray]] = []
    for code in range(256):
        table.append([vector for polygon in _polygons(code) for vector in _triangle_vectors(polygon)])
    return table
