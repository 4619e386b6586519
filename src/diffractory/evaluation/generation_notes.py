"""Words around the tables of the generation study."""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from diffractory.evaluation.crystal_scores import DEFAULT_TOLERANCES
from diffractory.evaluation.generation import MODELS, PUBLISHED, STUDY, counterpart
from diffractory.evaluation.metrics import wilson_interval
from diffractory.evaluation.published import published_column, published_values
from diffractory.evaluation.tables import NOT_RUN, listed

INTERVALS = (
    "Intervals: bootstrap over crystals, 95 %. Where all or none count they have no width, however "
    "few the crystals."
)

MATCHES = (
    "Match rate: share of all crystals that were encoded whose decoded crystal pymatgen's "
    "StructureMatcher takes for the same ({}); one that could not be compared, or not in time, is "
    "a miss. Mean RMS distance: over the matched alone, in units of the cube root of the volume "
    "per atom, so that a model with few matches may have the smaller one."
)

TOLERANCES = (
    "With misses at {stol:g}: the distance of what does not match is put at the tolerance, so that "
    "models of different match rates can be compared. Valid alone: a match counts only where the "
    "decoded crystal is valid in structure and composition, as in the released code of Xie et al. "
    "(ICLR 2022), and so perhaps in the published numbers. Default: the matcher's own tolerances, "
    "{default}. Same space group, composition and number of atoms: share of all. Out of time: "
    "compared for longer than allowed, and a miss."
)

GENERATION = (
    "Structure valid: all distances above 0.5 Å; composition valid: oxidation states with which "
    "the charges balance (SMACT). Both, COV-P, unique and novel are shares of all generated: "
    "what is not a number, or has no fingerprint, counts against the model.",
    "COV-R: share of all test crystals to which a generated one comes near; COV-P the reverse; "
    "near is within the cutoffs of the CrystalNN and the Magpie fingerprint: {cutoffs}. The "
    "nearest in the one need not be the nearest in the other (Xie et al., ICLR 2022).",
    "W: Wasserstein distance from the test crystals, of as many crystals, drawn from those valid "
    "in both ways, as the last column says. Drawing crystals anew for the interval adds to a "
    "distance, so that a small one lies at the lower end of its interval.",
    "Unique: the first of its duplicates among the generated. Novel: like no training crystal. The "
    "paper has neither.",
)

RELAXATION = (
    "The first generated crystals that are valid in structure; the second size is their number. "
    "Match rate: share of all of them that match what they relax to; one that could not be relaxed "
    "is a miss. Mean RMS distance: over the matched. Changes: root "
    "mean squares over those that converged, of all of these, matched or not; the paper does not "
    "say of which. Energy as in the paper; the enthalpy, at {pressure:g} GPa, is what relaxation "
    "makes small."
)

EQUATIONS = (
    "Eq. 6: coordinates are not wrapped between steps, and the prefactor has the alpha of one "
    "step. Eq. 7, which the models of Table 1 use: they are, and it is cumulative.",
    "The published numbers are in Table S1 of the supplement, which this project does not have.",
)

FEWER = (
    "Network evaluations: for each crystal. The paper has all of its steps alone. Each row starts "
    "from the same latent vectors."
)

SPLITS = (
    "Random split: as published, crystals drawn at random or by file. Disjoint split: one of each "
    "group of duplicates, and no prototype or composition on two sides, as far as there are "
    "several; where one prototype is too frequent, no chemical system. Duplicates: share of the "
    "test crystals beyond one of each group; twin in training: share that have a duplicate among "
    "the training crystals. Each model is asked about the test crystals of its own split. The "
    "paper has the random split alone."
)


def table_notes(name: str, cells: pd.DataFrame, context: Mapping[str, Any]) -> Iterator[str]:
    """Yield the notes of a table, but for those on data and on what was not run."""
    if name == "3":
        yield RELAXATION.format(pressure=context["pressure"])
        yield "Matches: " + _tolerances(context["tolerances"]) + "."
    elif name == "2":
        yield from (note.format(cutoffs=_cutoffs(context)) for note in GENERATION)
    else:
        yield MATCHES.format(_tolerances(context["tolerances"]))
    yield INTERVALS
    match name:
        case "1":
            yield from _notes_on_published_reconstruction(cells)
        case "2":
            yield from _notes_on_published_generation(cells)
        case "3":
            yield from _notes_on_published_relaxation()
        case "S1":
            yield from EQUATIONS
        case "tolerances":
            default = _tolerances(DEFAULT_TOLERANCES)
            yield TOLERANCES.format(stol=context["tolerances"]["stol"], default=default)
        case "steps":
            yield FEWER
        case _:
            yield f"COV-R: within {_cutoffs(context)}."
            yield SPLITS


def _tolerances(tolerances: Mapping[str, float]) -> str:
    ltol, stol, angle = (tolerances[name] for name in ("ltol", "stol", "angle_tol"))
    return f"ltol {ltol:g}, stol {stol:g}, angle_tol {angle:g} degrees"


def _cutoffs(context: Mapping[str, Any]) -> str:
    """Return the cutoffs of the fingerprints, data sets with the same ones together."""
    sets: dict[str, list[str]] = {}
    for dataset, values in context["cutoffs"].items():
        shown = f"structure {values['structure']:g}, composition {values['composition']:g}"
        sets.setdefault(shown, []).append(counterpart(dataset).label)
    return "; ".join(f"{shown} ({listed(names)})" for shown, names in sets.items())


def _text(table: str, row: str, column: str) -> str:
    """Return what the running text of the paper says."""
    values = published_values().set_index(["study", "table", "row", "column"])["value"]
    return str(values[STUDY, f"{table} (text)", row, column])


def _notes_on_published_reconstruction(cells: pd.DataFrame) -> Iterator[str]:
    yield (
        "Published FTCP and CDVAE are from the literature: the paper has them of Xie et al., ICLR "
        "2022. It has none of CDVAE+Fourier here, no intervals, and no number of duplicates."
    )
    rates = published_column(STUDY, 1, "Match rate").astype(float)
    rises = [
        rates[f"{dataset}, DP-CDVAE+N_a"] - rates[f"{dataset}, DP-CDVAE"] for dataset in PUBLISHED
    ]
    least, most = (_text("1", "DP-CDVAE+N_a", f"{end} above DP-CDVAE") for end in ("Least", "Most"))
    below = _text("1", "DP-CDVAE", "Below CDVAE on Perov-5")
    with_gine, without = rates["Carbon-24, DP-CDVAE+GINE"], rates["Carbon-24, DP-CDVAE"]
    yield (
        f"The running text of the paper differs from its Table 1: N_a adds {least} to {most} %, "
        f"where the table has {min(rises):.2f} to {max(rises):.2f} points; GINE takes from the "
        f"match rate on Carbon-24, where the table has {with_gine:.2f} with GINE alone and "
        f"{without:.2f} without. Its {below} % by which DP-CDVAE is below CDVAE are points."
    )
    yield _comparison(cells)


def _comparison(cells: pd.DataFrame) -> str:
    """Return how much each match rate is below the published one."""
    rates = cells[(cells["column"] == "Match rate") & (cells["published"] != "")]
    run = rates[~rates["value"].isin([NOT_RUN])]
    points = pd.to_numeric(run["published"]) - pd.to_numeric(run["value"], errors="coerce")
    below = [
        f"{row} by {missing:.1f}"
        for row, missing in zip(run["row"], points, strict=True)
        if missing > 0
    ]
    found = "; ".join(below) if below else "none"
    return f"Below the published match rate, in points: {found if len(run) else NOT_RUN}."


def _notes_on_published_generation(cells: pd.DataFrame) -> Iterator[str]:
    generated, drawn = (
        int(_text("2", "All models", column))
        for column in ("Generated structures", "Structures for properties")
    )
    yield (
        f"Published: {generated:,} structures of each model, {drawn:,} valid ones for W. "
        "G-SchNet, P-G-SchNet and CDVAE are from the literature (Xie et al., ICLR 2022); the first "
        "two are no part of this project."
    )
    columns = [column for column in dict.fromkeys(cells["column"]) if column.startswith("W ")]
    models = [label for label in MODELS.values() if label.startswith("DP-CDVAE")]
    larger, total = 0, 0
    for column in columns:
        known = published_column(STUDY, 2, column).astype(float)
        larger += sum(known[f"Perov-5, {one}"] > known["Perov-5, CDVAE"] for one in models)
        total += len(models)
    coverage = published_column(STUDY, 2, "COV-R")
    yield (
        "The running text of the paper finds significant improvements in property statistics and "
        f"similar COV-R throughout; in its Table 2, {larger} of {total} distances W of the four "
        "DP-CDVAE models on Perov-5 are larger than that of CDVAE, and DP-CDVAE+N_a+GINE has a "
        f"COV-R of {coverage['MP-20, DP-CDVAE+N_a+GINE']} on MP-20, CDVAE "
        f"{coverage['MP-20, CDVAE']}."
    )


def _notes_on_published_relaxation() -> Iterator[str]:
    relaxed = int(_text("3", "All models", "Relaxed structures"))
    pressure = _text("3", "All models", "Pressure (GPa)")
    below = _text("3", "DP-CDVAE", "Below CDVAE in energy change (meV/atom)")
    rates = published_column(STUDY, 3, "Match rate").astype(float)
    low, high = (100 * end for end in wilson_interval(rates.max() / 100 * relaxed, relaxed))
    yield (
        f"Published: {relaxed} structures of each model, of carbon, relaxed by DFT (VASP, PBE) at "
        f"{pressure} GPa. Match rates of {rates.min():.0f} to {rates.max():.0f} % are the same "
        f"within the error of {relaxed} structures: the 95 % interval of the highest is "
        f"{low:.0f} to {high:.0f} %."
    )
    yield (
        f'The {below} meV/atom by which the abstract has DP-CDVAE nearer to the ground state "on '
        'average" are the difference of two root mean squares, and the ground state is the nearest '
        "minimum, not the most stable crystal."
    )
