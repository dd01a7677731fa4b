"""Channels with ranges alike in groups, and a scale and a shift of each group found together with the steps."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.cluster import hierarchy

from medvfm_jax.adapters.grouped_inputs import rounded_by_group
from medvfm_jax.adapters.integer_weights import largest, rounded
from medvfm_jax.compress.calibration import Rows
from medvfm_jax.compress.search import LEAST, MOST, product

_TINY = 1e-8


class GroupedSteps(NamedTuple):
    """What one layer is rounded with; its kernel W becomes that of ``scaled_rows``, integers times ``weights``.

    Attributes:
        group: (in,) number of each channel's group.
        scale: (groups,) by which channels are divided. Before the search, where every group has a step of its own,
            their geometric mean over channels is 1, so that weights keep their size.
        low: (groups,) whole numbers, the first of each group's levels.
        step: (1,) of the divided channels.
        weights: (out,) steps of the scaled kernel.
        error: curvature-weighted squared error of the output, a sum over sampled places.
    """

    group: NDArray[np.uint8]
    scale: NDArray[np.float32]
    low: NDArray[np.float32]
    step: NDArray[np.float32]
    weights: NDArray[np.float32]
    error: float


def truncated(lows: NDArray, highs: NDArray, limit: float) -> tuple[NDArray, NDArray]:
    """Ranges of channels without the extremes of a few.

    Sizes, the larger end of each range, are clustered by single linkage: channels whose sizes differ by less than the
    factor ``limit`` from one to the next lie together. Ends beyond the largest size of the largest cluster are cut to
    ``limit`` times it. Channels that were always 0 take no part and get the range of all others, because nothing is
    known of them.

    Args:
        lows: (channels,).
        highs: (channels,).
        limit: above 1.

    Returns:
        (channels,) each.
    """
    sizes = np.maximum(-lows, highs)
    alive = sizes > 0
    if alive.sum() > 1:
        logs = np.log(sizes[alive])
        cluster = hierarchy.fcluster(hierarchy.linkage(logs[:, None], "single"), np.log(limit), "distance")
        most = limit * np.exp(logs[cluster == np.bincount(cluster).argmax()].max())
        lows, highs = np.maximum(lows, -most), np.minimum(highs, most)
    return np.where(alive, lows, lows.min()), np.where(alive, highs, highs.max())


def groups_of(lows: NDArray, highs: NDArray, groups: int) -> NDArray[np.uint8]:
    """The group of each channel: ranges are clustered by their size in octaves and by where their middle lies.

    Args:
        lows: (channels,).
        highs: (channels,).
        groups: at most so many, by Ward's linkage.

    Returns:
        (channels,) numbers from 0.
    """
    if len(lows) <= groups:
        return np.arange(len(lows), dtype=np.uint8)
    half = np.maximum((highs - lows) / 2, _TINY)
    middle = np.clip((highs + lows) / 2 / half, -4, 4)
    tree = hierarchy.linkage(np.stack([np.log2(half), middle], 1), "ward")
    return (hierarchy.fcluster(tree, groups, "maxclust") - 1).astype(np.uint8)


def group_search(
    rows: Rows,
    kernel: NDArray[np.float32],
    bits: int,
    groups: int,
    candidates: int,
    rounds: int,
    limit: float,
) -> GroupedSteps:
    """Groups of the channels, then their scales and shifts, the step of the input and those of the weights, in turns.

    Minimises the sum over sampled places and outputs of h (y' - y)^2 as ``search`` does, h ``Rows.curvature`` and y'
    with input and scaled weights rounded. In each round every group in turn tries ``candidates`` shares of the step
    that covers its range, with the range kept at its lower end or around its middle, while the others stay; then every
    output tries shares of its step.

    Args:
        rows: what the layer multiplies on calibration images.
        kernel: its weights, (..., out).
        bits: of both.
        groups: of channels.
        candidates: shares that are tried.
        rounds: turns; 0 covers every range.
        limit: see ``truncated``.

    Returns:
        The best found.

    References:
        Liu et al. 2024, "PQ-SAM", https://eccv.ecva.net/virtual/2024/poster/2654 (its abstract).
    """
    ranges = truncated(rows.lows, rows.highs, limit)
    layer = _Layer(rows, kernel, bits, ranges, groups_of(*ranges, groups))
    shares = np.unique(np.append(np.linspace(LEAST, MOST, candidates), 1.0)).astype(np.float32)
    for _ in range(rounds):
        for number in range(layer.count):
            layer.improve_group(number, shares)
        layer.improve_weights(shares)
    scale = np.ones(groups, np.float32)
    scale[: layer.count] = layer.scale
    low = np.zeros(groups, np.float32)
    low[: layer.count] = layer.low
    return GroupedSteps(layer.group, scale, low, layer.step, layer.weights, layer.error())


class _Layer:
    """The state of one search: the steps so far, and what each group gives of the output with them.

    A depthwise convolution has a channel for each output: a group is then some of the outputs, and since an output
    has a step of its own, the scale of its channel is one of that step too, and its integers stay what they are.
    """

    def __init__(
        self,
        rows: Rows,
        kernel: NDArray,
        bits: int,
        ranges: tuple[NDArray, NDArray],
        group: NDArray[np.uint8],
    ):
        self.bits, self.most, self.group, self.count = bits, 2**bits - 1, group, int(group.max()) + 1
        self.depthwise = rows.product.kind == "depthwise"
        self.w = kernel.reshape(-1, kernel.shape[-1]).astype(np.float32)
        self.x, self.square = rows.x, rows.curvature
        self.y = product(self.depthwise, self.x, self.w)
        inputs = rows.x.shape[-1]
        self.of_input = group[np.arange(inputs) % len(group)]  # taps of a window one after the other
        self.members = [np.flatnonzero(self.of_input == number) for number in range(self.count)]
        self.padded = rows.product.pad != (0, 0)  # then zeros are among the values, and have to stay zeros
        bound = 0.0 if self.padded else np.inf
        self.lows = np.array([min(ranges[0][group == n].min(), bound) for n in range(self.count)])
        self.highs = np.array([max(ranges[1][group == n].max(), -bound) for n in range(self.count)])
        self.cover = (np.maximum(self.highs - self.lows, _TINY) / self.most).astype(np.float32)
        sizes = np.bincount(group)
        self.step = np.array([np.exp((sizes * np.log(self.cover)).sum() / sizes.sum())], np.float32)
        # Fine inputs cost coarse weights where their rows grow: the better of two starts, each group's own step and one
        # for all.
        starts = [self._start(self.cover), self._start(np.full_like(self.cover, self.cover.max()))]
        _, self.scale, self.low, self.weights = min(starts, key=lambda start: start[0])

    def _start(self, steps: NDArray) -> tuple[float, NDArray, NDArray, NDArray]:
        """Error, and scales, first levels and steps of the weights, where groups have these steps."""
        self.scale = (steps / self.step[0]).astype(np.float32)
        self.low = np.array([self._firsts(n, steps[n])[0] for n in range(self.count)], np.float32)
        self.weights = _cover(self._scaled(), self.bits)
        return self.error(), self.scale, self.low, self.weights

    def error(self) -> float:
        """What is minimised, at the steps so far."""
        return float((self.square * np.square(self._output() - self.y)).sum())

    def improve_group(self, number: int, shares: NDArray) -> None:
        """Scale and first level of one group, the others as they are."""
        outputs = self.members[number] if self.depthwise else slice(None)
        old = self.scale[number], self.low[number]
        part = self._part(number, *old)
        rest, square = (self._output() - self.y)[..., outputs] - part, self.square[..., outputs]
        best, least = old, float((square * np.square(rest + part)).sum())
        for share in shares:
            step = self.cover[number] * share
            for low in self._firsts(number, step):
                scale = step / self.step[0]
                found = float((square * np.square(rest + self._part(number, scale, low))).sum())
                if found < least:
                    best, least = (scale, low), found
        if self.depthwise:
            self.weights[outputs] *= best[0] / self.scale[number]
        self.scale[number], self.low[number] = best

    def improve_weights(self, shares: NDArray) -> None:
        """The step of every output, the inputs as they are."""
        scaled, x = self._scaled(), np.empty(self.x.shape, np.float32)
        for number, mine in enumerate(self.members):
            x[..., mine] = self._inputs(number, self.scale[number], self.low[number])

        def errors(steps: NDArray) -> NDArray:
            w = rounded(scaled, steps, self.bits) * steps
            return (self.square * np.square(product(self.depthwise, x, w) - self.y)).sum(0)

        cover, best = _cover(scaled, self.bits), self.weights
        least = errors(best)
        for share in shares:
            found = errors(cover * share)
            best, least = np.where(found < least, cover * share, best), np.minimum(found, least)
        self.weights = best

    def _firsts(self, number: int, step: float) -> list[float]:
        """First levels at a step: at the lower end of a group's range, and so that the levels lie around its middle."""
        at_end = np.round(self.lows[number] / step)
        around = np.round((self.lows[number] + self.highs[number]) / 2 / step - self.most / 2)
        if self.padded:
            at_end, around = np.clip([at_end, around], -self.most, 0)
        return [float(at_end)] if at_end == around else [float(at_end), float(around)]

    def _scaled(self) -> NDArray[np.float32]:
        scales = self.scale[self.of_input]
        return self.w * (scales if self.depthwise else scales[:, None])

    def _inputs(self, number: int, scale: float, low: float) -> NDArray[np.float32]:
        """The inputs of a group, divided by a scale and rounded."""
        mine = self.x[..., self.members[number]]
        group = np.zeros(mine.shape[-1], np.uint8)
        return rounded_by_group(mine, group, np.float32([scale]), np.float32([low]), self.step, self.bits)

    def _part(self, number: int, scale: float, low: float) -> NDArray[np.float32]:
        """What a group gives of the output, (n, out), or of its own outputs where they are its channels."""
        mine, x = self.members[number], self._inputs(number, scale, low)
        if self.depthwise:
            step = self.weights[mine] / self.scale[number]
            return product(True, x, rounded(self.w[:, mine], step, self.bits) * (step * scale))
        return x @ (rounded(self.w[mine] * scale, self.weights, self.bits) * self.weights)

    def _output(self) -> NDArray[np.float32]:
        total = np.zeros_like(self.y)
        for number, mine in enumerate(self.members):
            outputs = mine if self.depthwise else slice(None)
            total[..., outputs] += self._part(number, self.scale[number], self.low[number])
        return total


def _cover(w: NDArray, bits: int) -> NDArray[np.float32]:
    """The step of each output with which no weight is clipped."""
    top = np.abs(w).max(0)
    return (np.where(top > 0, top, 1) / largest(bits)).astype(np.float32)
