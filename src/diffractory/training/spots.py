"""Batches of spot lists for networks, from a pattern store on disk or in memory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffractory.store import CRYSTAL_SYSTEMS, InputError, SpotReader, generator
from diffractory.store.patterns import CHUNK
from diffractory.training.batches import Batches

RUNS = 8
"""Runs of patterns that a window is mixed from."""
GROUP = 4
"""Batches among which patterns are sorted by their number of spots. More would save padding, which
is 30 % at 4, but patterns with as many spots are alike, and networks learn less from such batches:
3 % fewer validation patterns were right at 64."""


class Batch(NamedTuple):
    """B patterns, padded with zeros to the N spots of the longest (N is at least 1).

    Processes that train together each have some of the W patterns of a whole batch; else B is W.

    Attributes
    ----------
    spots
        q_x and q_y in 1/angstrom and intensity as a fraction of the incident beam, shape (B, N, 3),
        float32.
    mask
        True where a spot is, shape (B, N).
    crystal_system
        Index in ``store.CRYSTAL_SYSTEMS``, shape (B,), int64.
    space_group
        Number minus 1, shape (B,), int64.
    pattern
        Indices in the store, of the whole batch, shape (W,), int64.
    """

    spots: Tensor
    mask: Tensor
    crystal_system: Tensor
    space_group: Tensor
    pattern: Tensor


class _Spots(NamedTuple):
    """Spots of the patterns in ascending rows of the labels; those of rows[i] begin at start[i]."""

    rows: NDArray[np.int64]
    start: NDArray[np.int64]
    values: NDArray[np.float32]


class _Window(NamedTuple):
    """Consecutive batches, each as rows of the labels, and spots that include theirs."""

    number: tuple[int, int]
    batches: list[NDArray[np.int64]]
    spots: _Spots


class SpotBatches(Batches[Batch]):
    """Batches of the patterns of a split.

    Patterns whose spots begin in one chunk of the store are a run. Runs are permuted, and a window
    of about `RUNS` of them at a time is read and its patterns are shuffled. In a window, patterns
    with about as many spots share a batch, so that there is little padding.

    Parameters
    ----------
    store
        Pattern store.
    labels
        What ``labels_of_split`` returns: columns ``pattern``, ``crystal_system``, ``space_group``.
    batch_size
        Most patterns in a batch; the patterns of a pass are divided evenly, to one more or less.
    max_spots
        Most spots of a pattern, the brightest.
    seed
        Global seed.
    shuffle
        Whether to shuffle; if not, every pass has the same batches.
    in_memory
        Whether one window is everything (12 bytes a spot), read once and kept. Every worker would
        read and keep it: meant for a ``DataLoader`` without workers.

    Raises
    ------
    InputError
        If there is no pattern.
    """

    unit = "patterns"
    remedy = "lower symmetry.hardware.devices or nodes, or raise batch_size or validation_patterns"
    held: _Window | None

    def __init__(
        self,
        store: Path,
        labels: pd.DataFrame,
        batch_size: int,
        max_spots: int,
        seed: int,
        shuffle: bool,
        in_memory: bool,
    ) -> None:
        if labels.empty:
            raise InputError(
                f"no pattern of {store} belongs to this part of the split: use more structures, or "
                "change split.test and split.validation"
            )
        super().__init__(len(labels), batch_size)
        labels = labels.sort_values("pattern")
        self.pattern = labels["pattern"].to_numpy(np.int64)
        system = pd.Index(CRYSTAL_SYSTEMS).get_indexer(pd.Index(labels["crystal_system"]))
        space_group = labels["space_group"].to_numpy(np.int64) - 1
        self.labels = np.stack([system, space_group])
        self.max_spots = max_spots
        self.seed, self.shuffle, self.in_memory = seed, shuffle, in_memory
        self.reader = SpotReader(store)
        self.count = np.minimum(np.diff(self.reader.offsets)[self.pattern], max_spots)
        self.chunk = self.reader.offsets[self.pattern] // CHUNK
        self.run_start = np.flatnonzero(np.diff(self.chunk, prepend=-1))
        mixed = max(64, RUNS * len(self) // len(self.run_start))
        self.window_size = len(self) if in_memory else mixed

    def __getitem__(self, k: int) -> Batch:
        pass_, batch = divmod(k, len(self))
        window, batch = divmod(batch, self.window_size)
        if self.held is None or self.held.number != (pass_, window):
            self.held = self._load(pass_, window)
        whole, held = self.held.batches[batch], self.held.spots
        rows = whole[self.rank :: self.world]
        start = held.start[np.searchsorted(held.rows, rows)]
        labels, pattern = self.labels[:, rows], self.pattern[whole]
        return _batch(held.values, start, self.count[rows], labels, pattern)

    def _load(self, pass_: int, window: int) -> _Window:
        batches = self._divide(pass_, window)
        if self.in_memory and self.held is not None:
            spots = self.held.spots
        else:
            spots = self._read(np.sort(np.concatenate(batches)))
        return _Window((pass_, window), batches, spots)

    def _divide(self, pass_: int, window: int) -> list[NDArray[np.int64]]:
        """Return the rows of each batch of a window."""
        first = window * self.window_size
        bounds = self.bounds[first : first + self.window_size + 1]
        size = np.diff(bounds)
        if not self.shuffle:
            rows = np.arange(bounds[0], bounds[-1])
            rows = rows[np.argsort(self.count[rows], kind="stable")]
            return np.split(rows, np.cumsum(size)[:-1])
        rng = generator(self.seed, "spot_batches", f"{pass_}/{window}")
        rows = rng.permutation(self._order(pass_)[bounds[0] : bounds[-1]])
        group = np.repeat(np.arange(len(size)) // GROUP, size)
        rows = rows[np.lexsort((self.count[rows], group))]
        batches = np.split(rows, np.cumsum(size)[:-1])
        return [batches[i] for i in rng.permutation(len(batches))]

    def _order(self, pass_: int) -> NDArray[np.int64]:
        """Return all rows, run after run in the order of a pass."""
        rows = np.arange(len(self.pattern))
        order = generator(self.seed, "spot_batches", pass_).permutation(len(self.run_start))
        size = np.diff(self.run_start, append=len(rows))[order]
        return rows + np.repeat(self.run_start[order] - np.cumsum(size) + size, size)

    def _read(self, rows: NDArray[np.int64]) -> _Spots:
        """Read the spots of ascending rows, each run or part of one at once."""
        count = self.count[rows]
        runs = np.split(rows, np.flatnonzero(np.diff(self.chunk[rows])) + 1)
        values = np.concatenate([self._read_run(self.pattern[run]) for run in runs])
        return _Spots(rows, np.cumsum(count) - count, values)

    def _read_run(self, patterns: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the brightest spots of ascending patterns, and none of what is between them."""
        first = patterns[0]
        values = self.reader.read(first, patterns[-1] + 1)
        offsets = self.reader.offsets
        start = offsets[patterns] - offsets[first]
        return brightest(values, start, start + np.diff(offsets)[patterns], self.max_spots)


@numba.njit(cache=True)
def brightest(
    values: NDArray[np.float32], start: NDArray[np.int64], stop: NDArray[np.int64], most: int
) -> NDArray[np.float32]:
    """Return the spots start[p]:stop[p] of each p, in their order, at most the brightest."""
    result = np.empty((np.minimum(stop - start, most).sum(), 3), dtype=np.float32)
    done = 0
    for p in range(len(start)):
        spots = values[start[p] : stop[p]]
        if len(spots) > most:
            spots = spots[np.sort(np.argsort(-spots[:, 2], kind="mergesort")[:most])]
        result[done : done + len(spots)] = spots
        done += len(spots)
    return result


def _batch(
    values: NDArray[np.float32],
    start: NDArray[np.int64],
    count: NDArray[np.int64],
    labels: NDArray[np.int64],
    pattern: NDArray[np.int64],
) -> Batch:
    # One buffer for all: to hand memory over is most of a worker's time, and each buffer costs it.
    size, width = len(start), max(1, int(count.max()))
    a = labels.nbytes + pattern.nbytes
    b = a + 12 * size * width
    buffer = torch.from_numpy(np.zeros(b + size * width, dtype=np.uint8))
    targets = buffer[:a].view(torch.int64)
    spots = buffer[a:b].view(torch.float32).view(size, width, 3)
    mask = buffer[b:].view(torch.bool).view(size, width)
    targets.numpy()[:] = np.concatenate([*labels, pattern])
    fill(spots.numpy(), mask.numpy(), values, start, count)
    return Batch(spots, mask, targets[:size], targets[size : 2 * size], targets[2 * size :])


@numba.njit(cache=True)
def fill(
    spots: NDArray[np.float32],
    mask: NDArray[np.bool_],
    values: NDArray[np.float32],
    start: NDArray[np.int64],
    count: NDArray[np.int64],
) -> None:
    """Write the spots values[start[b]:start[b] + count[b]] to spots[b], and where they are."""
    for b in range(len(start)):
        spots[b, : count[b]] = values[start[b] : start[b] + count[b]]
        mask[b, : count[b]] = True


def varied(spots: Tensor, mask: Tensor, settings: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Return patterns, spots (B, N, 3) and mask (B, N), changed at random as the settings ask.

    Each is turned in its plane by any angle (``rotate``), enlarged by a factor of which the
    logarithm has a standard deviation (``scale_jitter``), loses a share of its spots between 0 and
    the greatest (``drop_spots``), and the spots below an intensity between that of its faintest and
    the largest (``faint_spots``, fraction of the incident beam; where it is given), of an even
    distribution of its logarithm.
    """
    n, device = len(spots), spots.device
    if settings["rotate"]:
        angle = 2 * torch.pi * torch.rand(n, 1, device=device)
        x, y, intensity = spots.unbind(dim=-1)
        cosine, sine = angle.cos(), angle.sin()
        spots = torch.stack([cosine * x - sine * y, sine * x + cosine * y, intensity], dim=-1)
    if settings["scale_jitter"]:
        factor = torch.exp(settings["scale_jitter"] * torch.randn(n, 1, 1, device=device))
        spots = torch.cat([spots[..., :2] * factor, spots[..., 2:]], dim=-1)
    if settings["drop_spots"]:
        share = settings["drop_spots"] * torch.rand(n, 1, device=device)
        mask = mask & (torch.rand(mask.shape, device=device) >= share)
    if most := settings.get("faint_spots"):
        intensity = torch.where(mask, spots[..., 2], torch.inf)
        faintest = intensity.amin(dim=1, keepdim=True).clamp(max=most).log()
        least = torch.lerp(
            faintest, faintest.new_tensor(most).log(), torch.rand(n, 1, device=device)
        )
        mask = mask & ~(intensity < least.exp())  # not a number stays, to be seen in the loss
    return spots, mask
