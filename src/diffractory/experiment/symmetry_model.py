"""The trained models of the symmetry study, as they are asked about measured spots."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from diffractory.errors import InputError
from diffractory.experiment.preparing import SpotLists
from diffractory.models.random_forest import HierarchicalForest
from diffractory.models.spot_lists import SpotListNetwork
from diffractory.store import CRYSTAL_SYSTEMS
from diffractory.training.conventions import NEAR_DIRECT
from diffractory.training.random_forest import load_random_forest
from diffractory.training.spot_networks import NETWORKS, load_network
from diffractory.training.spots import brightest, fill

FOREST = "random_forest"

KNOWN = ("energy", "thickness", "g_max", "min_intensity", "direct_beam")
"""What is told of training patterns, if anything is."""

BATCH_SIZE = 64
"""Patterns that a network is asked about at a time."""

TOLERANCE = 0.02
"""Largest part by which an energy or thickness may lie outside of what a model was trained on."""

LEAST_REACH = 0.75
"""Least part of the training patterns' radius that a detector must reach without a warning."""


class Said(NamedTuple):
    """What a model says of n patterns; all is zero for a pattern without diffracted spots.

    Attributes
    ----------
    crystal_system
        Probabilities in the order of ``CRYSTAL_SYSTEMS``, shape (n, 7).
    space_group
        The most probable, the first the most, shape (n, 3); 0 where the model tells no more.
    space_group_probability
        Their probabilities, shape (n, 3).
    """

    crystal_system: NDArray[np.float32]
    space_group: NDArray[np.int16]
    space_group_probability: NDArray[np.float32]

    @staticmethod
    def nothing(n: int) -> "Said":
        """Return what is said of n patterns before anything is said."""
        systems = np.zeros((n, len(CRYSTAL_SYSTEMS)), dtype=np.float32)
        return Said(systems, np.zeros((n, 3), dtype=np.int16), np.zeros((n, 3), dtype=np.float32))

    def put(self, patterns: Any, said: "Said") -> None:
        """Write what is said of some patterns."""
        self.crystal_system[patterns] = said.crystal_system
        self.space_group[patterns] = said.space_group
        self.space_group_probability[patterns] = said.space_group_probability


@dataclass(frozen=True)
class SymmetryModel:
    """A trained network or forest.

    Attributes
    ----------
    kind
        ``random_forest`` or a key of ``spot_networks.NETWORKS``.
    tell
        Asks it about lists that follow its conventions.
    patterns
        What its training patterns were like, as ``training.conventions`` returns it; empty for a
        model that was trained before this was written down.
    """

    kind: str
    tell: Callable[[SpotLists], Said]
    patterns: dict[str, Any]

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> "SymmetryModel":
        """Load a model from its folder, to compute on ``cpu`` or ``cuda``.

        Raises
        ------
        InputError
            If the folder does not hold a model of the symmetry study, or the device is not there.
        """
        if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
            raise InputError(f"there is no device {device!r} here: use cpu")
        hparams = _read_hparams(folder)
        kind = FOREST if "descriptor" in hparams else hparams.get("model")
        if kind not in (FOREST, *NETWORKS):
            raise InputError(
                f"{folder} holds {kind or 'no known model'}, not a model of the symmetry study: "
                f"give a folder of {', '.join([FOREST, *NETWORKS])}"
            )
        try:
            tell = _load_forest(folder) if kind == FOREST else _load_network(folder, device)
            patterns = hparams.get("patterns", {})
            if patterns:
                patterns = {name: patterns[name] for name in KNOWN}
        except (OSError, KeyError, TypeError, ValueError, AttributeError, SafetensorError) as error:
            raise InputError(
                f"the model in {folder} is broken ({error!r}): train it again with snakemake"
            ) from error
        return cls(kind, tell, patterns)

    def predict(self, spots: SpotLists) -> Said:
        """Return what the model says of spot lists; spots that it never sees are left out."""
        g = np.hypot(spots.qx, spots.qy)
        kept = g <= self.patterns.get("g_max", np.inf)
        if not self.patterns.get("direct_beam", True):
            kept &= g >= NEAR_DIRECT
        before = np.concatenate([[0], np.cumsum(kept)])
        values = (column[kept] for column in spots[1:])
        seen = SpotLists(before[spots.offsets], *values)
        diffracted = np.concatenate([[0], np.cumsum(g[kept] >= NEAR_DIRECT)])[seen.offsets]
        some = np.flatnonzero(np.diff(diffracted))
        said = Said.nothing(len(spots.offsets) - 1)
        said.put(some, self.tell(select(seen, some)))
        return said

    def warnings(
        self,
        energy: float | None,
        thickness: float | None,
        q_max: float,
        direct_beam: bool,
    ) -> list[str]:
        """Return in a line each what of a scan is unlike the training patterns.

        Parameters
        ----------
        energy
            Of the electrons, eV; None if it is not known.
        thickness
            Of the specimen, angstrom; None if it is not known.
        q_max
            Farthest from the direct beam that the detector reaches, 1/angstrom.
        direct_beam
            Whether it is seen.
        """
        if not self.patterns:
            return [
                "the model does not say what patterns it was trained on: nothing tells whether "
                "they are like those of the scan"
            ]
        lines, known = [], self.patterns
        if energy is None:
            lines.append(f"the scan does not tell its voltage: the model is for {self._kv}")
        elif _outside(energy, known["energy"]):
            lines.append(f"the model was trained for {self._kv}, and the scan has {_kv(energy)}")
        if thickness is not None and _outside(thickness, known["thickness"]):
            lines.append(
                f"the model was trained for {_span(known['thickness'], 1)} angstrom of thickness, "
                f"and the specimen has {thickness:g}"
            )
        if q_max < LEAST_REACH * known["g_max"]:
            lines.append(
                f"the model was trained with spots up to {known['g_max']:.2f} 1/angstrom, and the "
                f"detector reaches {q_max:.2f}"
            )
        if known["direct_beam"] and not direct_beam:
            lines.append(
                "the model was trained with the direct beam, and it is not seen: intensities are "
                "not fractions of the incident beam"
            )
        return lines

    @property
    def trained_on(self) -> str:
        """What the training patterns were like, in words."""
        if not self.patterns:
            return "unknown patterns"
        return (
            f"patterns of {self._kv}, {_span(self.patterns['thickness'], 1)} angstrom, spots up to "
            f"{self.patterns['g_max']:.2f} 1/angstrom and down to "
            f"{100 * self.patterns['min_intensity']:.2g} % of the incident beam"
        )

    @property
    def _kv(self) -> str:
        return f"{_span(self.patterns['energy'], 1000)} kV"


def select(spots: SpotLists, patterns: NDArray[np.int64]) -> SpotLists:
    """Return the spots of some patterns, in this order."""
    counts = np.diff(spots.offsets)[patterns]
    offsets = np.concatenate([[0], np.cumsum(counts)])
    index = np.arange(offsets[-1]) + np.repeat(spots.offsets[patterns] - offsets[:-1], counts)
    return SpotLists(offsets, *(column[index] for column in spots[1:]))


def _read_hparams(folder: Path) -> dict[str, Any]:
    missing = [n for n in ("hparams.json", "model.safetensors") if not (folder / n).is_file()]
    if missing:
        raise InputError(
            f"{folder} has no {' and no '.join(missing)}: give the folder of a trained model, such "
            "as results/models/symmetry/ours"
        )
    try:
        hparams = json.loads((folder / "hparams.json").read_text(encoding="utf-8"))
        return dict(hparams.items())
    except (ValueError, AttributeError) as error:
        raise InputError(
            f"{folder / 'hparams.json'} is broken ({error}): train the model again with snakemake"
        ) from error


def _load_network(folder: Path, device: str) -> Callable[[SpotLists], Said]:
    network, max_spots = load_network(folder)
    return partial(_ask_network, network.to(device), int(max_spots), device)


def _load_forest(folder: Path) -> Callable[[SpotLists], Said]:
    return partial(_ask_forest, load_random_forest(folder))


def _ask_network(network: SpotListNetwork, max_spots: int, device: str, spots: SpotLists) -> Said:
    """Return what a network says; patterns with about as many spots share a batch."""
    start, stop = spots.offsets[:-1], spots.offsets[1:]
    values = brightest(np.stack(spots[1:], axis=1), start, stop, max_spots)
    count = np.minimum(stop - start, max_spots)
    start = np.cumsum(count) - count
    said, order = Said.nothing(len(count)), np.argsort(count, kind="stable")
    for first in range(0, len(order), BATCH_SIZE):
        rows = order[first : first + BATCH_SIZE]
        shape = len(rows), int(count[rows].max())
        padded, mask = np.zeros((*shape, 3), dtype=np.float32), np.zeros(shape, dtype=bool)
        fill(padded, mask, values, start[rows], count[rows])
        with torch.inference_mode():
            batch = (torch.from_numpy(array).to(device) for array in (padded, mask))
            opinions = network.opinions(network(*batch))
            said.crystal_system[rows] = opinions.crystal_system.float().cpu()
            if opinions.space_group is not None:
                best = opinions.space_group.float().cpu().topk(3)
                said.space_group[rows] = best.indices + 1
                said.space_group_probability[rows] = best.values
    return said


def _ask_forest(forest: HierarchicalForest, spots: SpotLists) -> Said:
    """Return what a forest says; the space groups are those of its first crystal system."""
    said = Said.nothing(len(spots.offsets) - 1)
    features = forest.descriptor(*spots)
    systems = forest.forests["crystal_system"].predict(features)
    said.crystal_system[:, [CRYSTAL_SYSTEMS.index(name) for name in forest.systems]] = systems
    for i, name in enumerate(forest.systems):
        of = np.flatnonzero(systems.argmax(axis=1) == i)
        within = forest.forests[f"space_group.{name}"].predict(features[of])
        best = np.argsort(-within, axis=1, kind="stable")[:, :3]
        places = of[:, None], np.arange(best.shape[1])
        groups = np.array(forest.space_groups[name])[best]
        probability = np.take_along_axis(within, best, axis=1) * systems[of, i : i + 1]
        said.space_group[places] = np.where(probability > 0, groups, 0)
        said.space_group_probability[places] = probability
    return said


def _outside(value: float, ends: list[float]) -> bool:
    return not ends[0] * (1 - TOLERANCE) <= value <= ends[1] * (1 + TOLERANCE)


def _span(ends: list[float], unit: float) -> str:
    """Return a range, or its one value, in words."""
    low, high = (f"{end / unit:g}" for end in ends)
    return low if low == high else f"{low} to {high}"


def _kv(energy: float) -> str:
    return f"{energy / 1000:g} kV"
