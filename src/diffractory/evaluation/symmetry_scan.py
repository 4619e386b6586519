"""What the models say of a scan: tables, beside what Nathani et al. (2026) say of theirs.

The scan of the paper is not published. The one in its place is simulated, so that what is under the
probe is known, and what is said of it can be judged.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from diffractory.evaluation.published import published_column
from diffractory.evaluation.symmetry import MODELS, N_SYSTEMS, STUDY
from diffractory.evaluation.symmetry_cells import share, train_and_test
from diffractory.evaluation.tables import Table, listed, read_columns
from diffractory.store import CRYSTAL_SYSTEMS, InputError
from diffractory.store.scan_maps import (
    CLASSIFIED,
    NOT_CONFIDENT,
    TOO_FEW,
    UNUSABLE,
    ScanMap,
    read_map,
)

STAND_INS = {
    "gold": "simulated scan of gold nanoparticles (abTEM) in place of the published one",
    "file": "scan of another specimen in place of the published one",
}
"""What a scan of each source is."""

NAMED = ("cubic", "hexagonal", "tetragonal")
"""The crystal systems that the paper finds in its scan."""

OTHERS = "Other systems"

AXES = ("111", "100", "110")
NEAR_AXIS = 10.0
"""Largest angle between the beam and a crystal axis along which it is said to be, degree."""

SOURCE_OF_SHARES = "Figure 2 (text)"
"""Where the published shares are from."""

PUBLISHED_NOTE = (
    "The paper gives its shares in the text, those of the random forest roughly. It does not "
    "define the confidence score that must be at least 0.005 there; ours is the difference of the "
    "two largest probabilities."
)

INTERVAL_NOTE = (
    "Intervals: Wilson 95 %, with positions taken as independent. Positions of one particle, or of "
    "one window of the filter, are not, so that the intervals are too narrow."
)


@dataclass(frozen=True)
class Truth:
    """What a simulated scan shows at each of its N positions, row by row.

    Attributes
    ----------
    particle
        Index of the particle that the probe meets, -1 for none, shape (N,).
    thickness
        Of what the probe meets of particles, angstrom, shape (N,).
    groups
        By the name of a group, which positions belong to it, shape (N,): each position to one of
        the kinds, and one with a single grain to one of the orientations too.
    """

    particle: NDArray[np.int64]
    thickness: NDArray[np.float64]
    groups: dict[str, NDArray[np.bool_]]


def read_truth(path: Path | None, shape: tuple[int, ...]) -> Truth:
    """Read what the stage `simulate_scan` says of each position of a scan of this shape.

    Raises
    ------
    InputError
        If there is no such file, or it is not of this scan.
    """
    if path is None:
        raise InputError("what a scan shows is known of a simulated one alone: simulate one")
    angles = [f"angle_{axis}" for axis in AXES]
    columns = ["position", "particle", "kind", "overlap", "twinned", "thickness"]
    truth = read_columns(path, [*columns, *angles], gaps=angles).sort_values("position")
    if not np.array_equal(truth["position"], np.arange(np.prod(shape))):
        raise InputError(f"{path} does not have one row for each position of the maps: map again")
    particle, there = truth["particle"].to_numpy(np.int64), (truth["particle"] >= 0).to_numpy()
    overlap, twinned = truth["overlap"].to_numpy(bool), truth["twinned"].to_numpy(bool)
    decahedron = (truth["kind"] == "decahedron").to_numpy()
    single = there & ~overlap & ~twinned
    near = [(truth[angle] <= NEAR_AXIS).to_numpy() for angle in angles]
    along = {f"along <{axis}>": single & is_near for axis, is_near in zip(AXES, near, strict=True)}
    groups = {
        "sphere": single & ~decahedron,
        "decahedron, one grain": single & decahedron,
        "decahedron, several grains": there & ~overlap & twinned,
        "overlapping particles": there & overlap,
        **along,
        "other orientation": single & ~np.any(near, axis=0),
        "no particle": ~there,
    }
    return Truth(particle, truth["thickness"].to_numpy(np.float64), groups)


def read_maps(used: Mapping[str, Path]) -> dict[str, ScanMap]:
    """Read the map folders of some models, which must be of one scan.

    Raises
    ------
    InputError
        If one is not a map folder, or they differ in shape.
    """
    maps = {model: read_map(folder) for model, folder in used.items()}
    if len({one.state.shape for one in maps.values()}) > 1:
        raise InputError("the maps of the models differ in shape: map one scan with all of them")
    return maps


def count_systems(one: ScanMap) -> NDArray[np.int64]:
    """Return the number of classified positions by crystal system, shape (7,)."""
    return np.bincount(one.crystal_system[one.state == CLASSIFIED], minlength=N_SYSTEMS)


def scan_table(dataset: pd.DataFrame, used: Mapping[str, Path], source: str) -> Table:
    """Return the share of each crystal system in the positions that each model classifies.

    Parameters
    ----------
    dataset
        As ``symmetry.read_dataset`` gives it: what the models were trained on.
    used
        Map folders by model.
    source
        Of the scan: a key of ``STAND_INS``.
    """
    n_train = train_and_test(dataset, "patterns")[0].sum()
    maps = read_maps(used)
    cells = []
    for model, one in maps.items():
        states = np.bincount(one.state.ravel(), minlength=UNUSABLE + 1)
        numbers = {
            "Positions": one.state.size,
            "Classified": states[CLASSIFIED],
            "Too few spots": states[TOO_FEW],
            "Not confident": states[NOT_CONFIDENT],
            "Unusable frame": states[UNUSABLE],
        }
        values = {
            column: ("%", *share(int(n), int(states[CLASSIFIED]), "%"))
            for column, n in _named(count_systems(one)).items()
        }
        values |= {column: ("count", str(number), "") for column, number in numbers.items()}
        for column, (unit, value, interval) in values.items():
            published = published_column(STUDY, SOURCE_OF_SHARES, column)
            cells.append({"row": MODELS[model], "column": column, "unit": unit, "value": value,
                          "interval": interval, "published": published.get(MODELS[model], ""),
                          "items": "patterns", "n_train": n_train,
                          "n_test": states[CLASSIFIED]})  # fmt: skip
    specimen = (
        "The scan here is simulated, of gold spheres and decahedra, some of which lie on a facet. "
        "The published shares depend on how the particles of that specimen lie, so that it says "
        "little how well the two agree; what is right is in the table of the confusion."
        if source == "gold"
        else "The published shares are of gold nanoparticles, which are cubic."
    )
    notes = (how_mapped(maps), *_warnings(maps), specimen, PUBLISHED_NOTE, INTERVAL_NOTE)
    caption = "Crystal systems of the classified positions of a scan of nanoparticles, by method."
    return Table(pd.DataFrame(cells), caption, "Method", notes)


def confusion_table(dataset: pd.DataFrame, used: Mapping[str, Path], truth: Path | None) -> Table:
    """Return what each model says of positions by what is there; ``truth`` as `read_truth` has it.

    The other parameters are those of ``scan_table``.
    """
    n_train = train_and_test(dataset, "patterns")[0].sum()
    maps = read_maps(used)
    known = read_truth(truth, next(iter(maps.values())).state.shape)
    cells = []
    for model, one in maps.items():
        system, answered = one.crystal_system.ravel(), one.state.ravel() == CLASSIFIED
        for group, here in known.groups.items():
            said = np.bincount(system[here & answered], minlength=N_SYSTEMS)
            n, met = int(here.sum()), np.unique(known.particle[here & (known.particle >= 0)])
            numbers = {"Positions": n, "Particles": len(met)}
            values = {column: ("count", str(number), "") for column, number in numbers.items()}
            answers = _named(said) | {"Abstained": n - said.sum()}
            values |= {column: ("%", *share(int(k), n, "%")) for column, k in answers.items()}
            cells += [
                {"row": f"{MODELS[model]}, {group}", "column": column, "unit": unit, "value": value,
                 "interval": interval, "published": "", "items": "patterns", "n_train": n_train,
                 "n_test": n}
                for column, (unit, value, interval) in values.items()
            ]  # fmt: skip
    notes = (
        how_mapped(maps),
        "Gold is cubic, so that any other system is wrong, and so is any system where there is no "
        "particle. Positions are of the particle of which the probe meets most.",
        f"Orientations are those of single grains, within {NEAR_AXIS:g} degrees of an axis.",
        _thickness_note(known),
        "The degeneracy along <111>: seen in projection, gold has the symmetry 6mm there, and its "
        "spots, {220} and their sums, lie on a hexagonal net, as those of a hexagonal crystal "
        "along its axis do; a single pattern cannot tell the two. Along <100> the symmetry is 4mm "
        "and the net square, as of a tetragonal crystal.",
        INTERVAL_NOTE,
        "The paper gives none of these: what its scan shows is not known.",
    )
    caption = "What is said of the positions of the simulated scan, by what is there."
    return Table(pd.DataFrame(cells), caption, "Method, and what is there", notes)


def how_mapped(maps: Mapping[str, ScanMap]) -> str:
    """Return the sentences on how the maps come from what the models say of the positions."""
    settings = next(iter(maps.values())).attributes["settings"]
    side = settings["median_filter"]
    pooled = "those of neighbouring positions of one grain are joined, " if settings["pool"] else ""
    return (
        f"Positions with fewer than {settings['min_spots']} diffracted spots are left out. Of the "
        f"probabilities, {pooled}the median over {side} x {side} positions is taken, and where the "
        f"two largest then differ by less than {settings['min_confidence']:g} the model abstains."
    )


def _warnings(maps: Mapping[str, ScanMap]) -> list[str]:
    """Return what mapping warned of, each with the models that it warned of."""
    found: dict[str, list[str]] = {}
    for model, one in maps.items():
        for line in one.attributes["warnings"]:
            found.setdefault(line, []).append(MODELS[model])
    return [f"{listed(models)}: {line}." for line, models in found.items()]


def _thickness_note(known: Truth) -> str:
    gold = known.thickness[known.particle >= 0]
    if not len(gold):
        return "The probe meets no particle."
    return (
        f"The gold under the probe is {np.median(gold):.0f} angstrom thick in the median and "
        f"{gold.max():.0f} at most; what another thickness than that of the training costs is in "
        "the table of robustness."
    )


def _named(counts: NDArray[np.int64]) -> dict[str, int]:
    """Return the counts, shape (7,), of the systems that the paper names, and of the others."""
    named = {name.capitalize(): int(counts[CRYSTAL_SYSTEMS.index(name)]) for name in NAMED}
    return named | {OTHERS: int(counts.sum()) - sum(named.values())}
