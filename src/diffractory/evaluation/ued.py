"""Evaluations of the ultrafast-diffraction study: what the files hold, and scores from them."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import binom, rankdata

from diffractory.evaluation.metrics import Z_95, confusion_matrix
from diffractory.evaluation.published import published_values
from diffractory.evaluation.tables import listed, read_columns
from diffractory.store import InputError

STUDY = "ued"

MODELS = {"cnn_syn": "CNNSyn", "cnn_exp": "CNNExp", "c_vae": "C-VAE"}
"""Models by the name of their file, as the paper prints them."""

CLASSES = {
    "pristine_2h": "Ref. 2H",
    "vacancies_2h": "Vac. 2H",
    "strained_2h": "Deform. 2H",
    "phonons_2h": "Phon. 2H",
    "vacancies_1t": "Vac. 1T'",
    "strained_1t": "Deform. 1T'",
    "phonons_1t": "Phon. 1T'",
}
"""Classes of the CNNs in the order of the paper, as its Figure 3 prints them."""

KINDS = {
    "2h": "2H",
    "1t": "1T'",
    "interpolated": "Interpolated",
    "transforming": "Transforming",
    "molten": "Molten",
}
"""Kinds of images that the C-VAE learns from, as figures print them."""

EXPECTED = ("2h", "1t", "interpolated")
"""Kinds that mark out, in the paper, where images of the phase transformation are expected."""

EXCITED = "phonons_2h"
"""The class that manual analysis found after the pump."""

IMPOSSIBLE = ("vacancies_2h", "vacancies_1t", "strained_1t", "phonons_1t")
"""Classes that no frame of the experiment can be of, which was below damage and transformation."""

STAND_IN = {
    "stand_in": (
        "simulated series (abTEM multislice, frozen phonons) for the unpublished experiment"
    ),
    "folder": "another measured series in place of the unpublished experiment",
}
"""What stands in for the published experiment, by the source of the series."""


class Latent(NamedTuple):
    """Test images in the latent space of the C-VAE.

    Attributes
    ----------
    kind
        Kind of each image, shape (N,).
    mean
        Latent means, shape (N, L).
    distance
        Distance to the segment between the means of 2H and 1T', shape (N,).
    reconstruction_error
        Mean squared error of the pixels, shape (N,).
    """

    kind: NDArray[np.str_]
    mean: NDArray[np.float64]
    distance: NDArray[np.float64]
    reconstruction_error: NDArray[np.float64]

    @property
    def kinds(self) -> list[str]:
        """Kinds that there are, the known ones first and in their order."""
        return sorted(set(self.kind), key=lambda kind: ([*KINDS, kind].index(kind), kind))


class Example(NamedTuple):
    """An image that a figure shows.

    Attributes
    ----------
    kind
        What it shows.
    time
        Time after the pump, ps; NaN where it has none.
    pixel_size
        1/angstrom.
    image
        Intensity over its mean outside of the beam stop, shape (rows, columns), rows along +q_y.
    """

    kind: str
    time: float
    pixel_size: float
    image: NDArray[np.float64]


def kind_name(kind: str) -> str:
    """Return a kind of images as it is printed."""
    return (KINDS | CLASSES).get(kind, kind)


def read_dataset(path: Path) -> "pd.Series[int]":
    """Return the number of images by (store, split, kind).

    Raises
    ------
    InputError
        If the file is not of the form that its stage writes.
    """
    table = read_columns(path, ["store", "split", "kind", "images"])
    return table.groupby(["store", "split", "kind"], sort=False)["images"].sum()


def count_images(dataset: "pd.Series[int]", store: str, split: str, kind: str = "") -> int:
    """Return how many images of a kind, or of all, a split of a store has."""
    keys = dataset.index.to_frame()
    chosen = (keys["store"] == store) & (keys["split"] == split)
    if kind:
        chosen &= keys["kind"] == kind
    return int(dataset[chosen.to_numpy()].sum())


def read_confusion(path: Path) -> NDArray[np.int64]:
    """Return how many test images of each class (row) got each class (column), shape (7, 7).

    Raises
    ------
    InputError
        If the file does not hold predictions of the classes of this study.
    """
    table = _with_rows(path, read_columns(path, ["kind", "predicted"]))
    truth, predicted = (_codes(path, table[name]) for name in ("kind", "predicted"))
    return confusion_matrix(truth, predicted, len(CLASSES))


def read_series(path: Path) -> pd.DataFrame:
    """Return the test frames of the experiment by scan and time: what they are, and are called.

    The columns are ``kind`` and ``predicted`` (indices into ``CLASSES``), ``time`` (ps after the
    pump) and ``scan``.

    Raises
    ------
    InputError
        If the file is not of this form, or has no test frame.
    """
    table = read_columns(path, ["kind", "predicted", "time", "scan", "split"])
    table = _with_rows(path, table[table["split"] == "test"])
    table = table.sort_values(["scan", "time"], ignore_index=True).drop(columns="split")
    return table.assign(**{name: _codes(path, table[name]) for name in ("kind", "predicted")})


def class_changes(series: pd.DataFrame, name: str) -> int:
    """Return how often the class in a column of a series changes from one frame to the next."""
    same_scan = series["scan"].diff() == 0
    return int((same_scan & (series[name].diff() != 0)).sum())


def read_latent(path: Path) -> Latent:
    """Read the test images in latent space.

    Raises
    ------
    InputError
        If the file is not of the form that `evaluate_image_network` writes.
    """
    columns = ["kind", "distance", "reconstruction_error", "latent_0"]
    others = [f"latent_{k}" for k in range(1, 100)]
    table = _with_rows(path, read_columns(path, columns, others))
    if not np.isfinite(table.drop(columns="kind").to_numpy(np.float64)).all():
        raise InputError(f"{path} has values that are not finite: train the C-VAE again")
    return Latent(
        table["kind"].to_numpy(str),
        table.filter(regex="^latent_").to_numpy(np.float64),
        table["distance"].to_numpy(np.float64),
        table["reconstruction_error"].to_numpy(np.float64),
    )


def read_means(hparams: Path | None) -> NDArray[np.float64]:
    """Return the mean latent vectors of the training images of 2H and of 1T', shape (2, L).

    Raises
    ------
    InputError
        If ``hparams.json`` of the C-VAE is not given, or does not have them.
    """
    if hparams is None:
        raise InputError("the mean vectors of the C-VAE are not given: train it")
    try:
        means = json.loads(hparams.read_text(encoding="utf-8"))["means"]
        return np.array([means["2h"], means["1t"]], dtype=np.float64)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{hparams} does not hold the mean vectors of 2h and 1t ({error!r}): train the C-VAE "
            "again"
        ) from error


def read_examples(path: Path | None, figure: str) -> list[Example]:
    """Return the images that a figure shows, or, for ``"reference"``, the reference.

    Raises
    ------
    InputError
        If the file is not given, is not of the form that `collect_examples` writes, or has no
        image for this figure.
    """
    if path is None:
        raise InputError("the images to show are not given: collect the examples")
    columns = ["figure", "kind", "time", "rows", "columns", "pixel_size", "image"]
    try:
        table = pd.read_parquet(path, columns=columns)
        shown = [
            Example(
                str(row["kind"]),
                float(row["time"]),
                float(row["pixel_size"]),
                np.asarray(row["image"], dtype=np.float64).reshape(row["rows"], row["columns"]),
            )
            for row in _with_rows(path, table[table["figure"] == figure]).to_dict("records")
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} does not hold images: {error}") from error
    if not all(np.isfinite(example.image).all() for example in shown):
        raise InputError(f"{path} has pixels that are not finite: collect the examples again")
    return shown


def published_confusion() -> NDArray[np.int64]:
    """Return the counts that Figure 3 of the paper prints, shape (7, 7)."""
    values = published_values()
    values = values[(values["study"] == STUDY) & (values["table"] == "Figure 3")]
    counts = values.pivot(index="row", columns="column", values="value")  # noqa: PD010
    return counts.loc[list(CLASSES.values()), list(CLASSES.values())].to_numpy(np.int64)


def published_text(figure: str, row: str, column: str) -> str:
    """Return what the text of the paper says of a figure."""
    values = published_values().set_index(["study", "table", "row", "column"])["value"]
    return str(values[STUDY, f"{figure} (text)", row, column])


def roc_auc(
    positive: NDArray[np.float64], negative: NDArray[np.float64]
) -> tuple[float, float, float]:
    """Return the area under the ROC curve of a score that is low for positives, and its interval.

    The area is the probability that a positive scores lower than a negative, where equal scores
    count one half. The 95 % interval is Newcombe's method 5, which solves the score equation with
    the variance of Hanley and McNeil; it has a width also where the area is 0 or 1.

    Source: R. G. Newcombe, Stat. Med. 25, 559 (2006).

    Parameters
    ----------
    positive, negative
        Scores, shapes (M,) and (N,), neither empty.

    Returns
    -------
    area, low, high
        Fractions.
    """
    m, n = len(positive), len(negative)
    ranks = rankdata(np.concatenate([negative, positive]))
    area = float((ranks[:n].sum() - n * (n + 1) / 2) / (m * n))
    theta = np.linspace(0, 1, 10_001)
    balance = (1 - theta) / (2 - theta) + theta / (1 + theta)
    variance = theta * (1 - theta) * (1 + ((m + n) / 2 - 1) * balance) / (m * n)
    inside = theta[(theta - area) ** 2 <= Z_95**2 * variance]
    reached = np.append(inside, area)
    return area, float(reached.min()), float(reached.max())


def median_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the distribution-free 95 % interval of a median; NaN for fewer than 6 values."""
    k = int(binom.ppf(0.025, len(values), 0.5))
    if k == 0:
        return np.nan, np.nan
    ordered = np.sort(values)
    return float(ordered[k - 1]), float(ordered[-k])


def _codes(path: Path, names: "pd.Series[str]") -> NDArray[np.int64]:
    known = list(CLASSES)
    codes = np.asarray(pd.Categorical(names, categories=known).codes, dtype=np.int64)
    if (codes < 0).any():
        bad = names[codes < 0].iloc[0]
        raise InputError(f"{path} has the class {bad!r}; there are {listed(known)}")
    return codes


def _with_rows(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    if table.empty:
        raise InputError(f"{path} has no row to show: make it again with more test images")
    return table
