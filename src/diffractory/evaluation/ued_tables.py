"""Tables of the ultrafast-diffraction study, beside the numbers of Shaaban et al. (2025)."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from diffractory.evaluation.symmetry_cells import share
from diffractory.evaluation.tables import (
    NOT_RUN,
    Table,
    check_name,
    listed,
    provenance_note,
    write_table,
)
from diffractory.evaluation.ued import (
    CLASSES,
    EXCITED,
    IMPOSSIBLE,
    KINDS,
    MODELS,
    STAND_IN,
    STUDY,
    Latent,
    class_changes,
    count_images,
    kind_name,
    median_interval,
    published_confusion,
    published_text,
    read_confusion,
    read_dataset,
    read_latent,
    read_means,
    read_series,
    roc_auc,
)
from diffractory.store import recorded

TABLES: dict[str, tuple[str, ...]] = {
    "accuracy": ("cnn_syn",),
    "experiment": ("experiment/cnn_syn", "experiment/cnn_exp"),
    "steering": ("c_vae",),
}
"""Prediction files that each table reads, in printed order; all tables read the dataset.

The table of steering reads ``hparams.json`` of the C-VAE as well.
"""

ALL_IMAGES = "All images"

JUDGED = {
    "Accuracy": "%",
    "Phonons after the pump": "%",
    "1T' or vacancies": "%",
    "Class changes": "",
}
"""What is said of a model on the experiment, with units."""

SCORES = (
    "Distance to the 2H\N{EN DASH}1T' line",
    "Distance to the nearer mean",
    "Reconstruction error",
)
"""The score of the paper, and two to compare it with."""

AUC, MEDIAN = "ROC AUC, transforming against", "Median,"

Scores = Sequence[NDArray[np.float64]]

Line = tuple[str, int, list[tuple[str, str]]]
"""A row of the table of steering: label, number of images, and by score value and interval."""

INTERVAL_NOTE = "Intervals: Wilson 95 %, with images taken as independent."


def make_table(
    name: str,
    dataset: Path,
    predictions: Mapping[str, Path],
    context: Mapping[str, Any],
    csv: Path,
    markdown: Path,
    run: Path,
    hparams: Path | None = None,
) -> None:
    """Write one table with our numbers beside the published ones.

    Parameters
    ----------
    name
        A key of ``TABLES``.
    dataset
        ``dataset.parquet``: numbers of images by store, kind and split.
    predictions
        Prediction files by model, the last part of what ``TABLES`` calls them; a model without one
        is shown as "not run".
    context
        ``scale``, ``dataset``, ``seed``, and ``source`` of the experiment: a key of ``STAND_IN``.
    csv, markdown, run
        What to write: the cells, the table to read, and the record.
    hparams
        ``hparams.json`` of the C-VAE, for the table ``steering``.

    Raises
    ------
    InputError
        If an input is not of the form described, or the study has no such table.
    """
    check_name(name, TABLES, "table", STUDY)
    models = [Path(file).name for file in TABLES[name]]
    used = {model: predictions[model] for model in models if model in predictions}
    inputs = [dataset, *used.values(), *filter(None, [hparams])]
    config, outputs = {**context, "table": name}, [csv, markdown]
    with recorded(run, "tabulate_ued", config, inputs, outputs, context["seed"]):
        images = read_dataset(dataset)
        match name:
            case "accuracy":
                table = _accuracy(images, used)
            case "experiment":
                table = _experiment(images, used)
            case _:
                table = _steering(images, used, hparams)
        cells = table.cells.assign(
            study=STUDY,
            table=name,
            items="images",
            dataset=context["dataset"],
            scale=context["scale"],
            seed=context["seed"],
            stand_in=STAND_IN[context["source"]] if name == "experiment" else "",
        )
        notes = [*table.notes, provenance_note(cells)]
        if absent := [MODELS[model] for model in models if model not in used]:
            notes.append(f"Not run: {'; '.join(absent)}.")
        write_table(Table(cells, table.caption, table.stub, tuple(notes)), csv, markdown)


def _accuracy(dataset: "pd.Series[int]", used: Mapping[str, Path]) -> Table:
    confusion = read_confusion(used["cnn_syn"]) if "cnn_syn" in used else None
    published = published_confusion()
    ours = _shares(confusion) if confusion is not None else {}
    theirs = _shares(published)
    cells = []
    for kind, row in {**CLASSES, "": ALL_IMAGES}.items():
        n_test = count_images(dataset, "classes", "test", kind)
        if confusion is not None:
            n_test = confusion[list(CLASSES).index(kind)].sum() if kind else confusion.sum()
        for column in ("Accuracy", "Precision") if kind else ("Accuracy",):
            value, interval = ours.get((row, column), (NOT_RUN, ""))
            cells.append(
                {"row": row, "column": column, "unit": "%", "value": value, "interval": interval,
                 "published": theirs[row, column][0], "n_test": n_test,
                 "n_train": count_images(dataset, "classes", "train", kind)}
            )  # fmt: skip
    caption = "Accuracy (recall) and precision of CNNSyn by class, simulated images."
    notes = (
        f"{INTERVAL_NOTE} Those of a precision are over the images that were given the name.",
        _published_note(theirs, int(published.sum())),
        "The published images are to be had on request only; these are simulated anew.",
    )
    return Table(pd.DataFrame(cells), caption, "Class", notes)


def _shares(confusion: NDArray[np.int64]) -> dict[Any, tuple[str, str]]:
    """Return accuracy and precision with their intervals by row and column of the table."""
    right, named, there = np.diag(confusion), confusion.sum(axis=0), confusion.sum(axis=1)
    shares = {(ALL_IMAGES, "Accuracy"): share(right.sum(), confusion.sum(), "%")}
    for k, row in enumerate(CLASSES.values()):
        shares[row, "Accuracy"] = share(right[k], there[k], "%")
        shares[row, "Precision"] = share(right[k], named[k], "%")
    return shares


def _published_note(shares: Mapping[Any, tuple[str, str]], total: int) -> str:
    """Return where the published values come from, and where the paper says otherwise."""
    lowest = "Deform. 2H"
    said = {
        column: published_text("Figure 3", lowest, column)
        for column in ("Right", "Images", "Accuracy")
    }
    overall = published_text("Figure 3", ALL_IMAGES, "Accuracy")
    return (
        f"Published: from the counts in Figure 3 of the paper, {total:,} images. Its text agrees: "
        f"class 2 ({lowest}) is the lowest, with {said['Right']} of {said['Images']} or "
        f"{said['Accuracy']} % ({shares[lowest, 'Accuracy'][0]} from the counts), and over "
        f"{overall} % are right overall ({shares[ALL_IMAGES, 'Accuracy'][0]}). Its text also calls "
        "class 6 an additional one, of images that belong to none of five others; in its figure, "
        "and in its own list of seven classes, class 6 is Phon. 1T'."
    )


def _experiment(dataset: "pd.Series[int]", used: Mapping[str, Path]) -> Table:
    series = {model: read_series(path) for model, path in used.items()}
    cells = []
    for model, store in {"cnn_syn": "classes", "cnn_exp": "experiment"}.items():
        values = dict.fromkeys(JUDGED, (NOT_RUN, ""))
        n_test = count_images(dataset, "experiment", "test")
        if model in series:
            values, n_test = _judged(series[model]), len(series[model])
        cells += [
            {"row": MODELS[model], "column": column, "unit": unit, "value": values[column][0],
             "interval": values[column][1], "published": "", "n_test": n_test,
             "n_train": count_images(dataset, store, "train")}
            for column, unit in JUDGED.items()
        ]  # fmt: skip
    labelled = {class_changes(frames, "kind") for frames in series.values()}
    expected = f" By the labels there are {min(labelled)}." if labelled else ""
    published = published_text("Figure 4", MODELS["cnn_exp"], "Training images")
    caption = "CNNSyn and CNNExp on the test frames of the experiment."
    notes = (
        f"{INTERVAL_NOTE} Frames of one scan share sample and drift: the intervals are too narrow.",
        f"Phonons after the pump: frames after time zero that are called {CLASSES[EXCITED]}. "
        "1T' or vacancies: frames at any time that are called a 1T' or a vacancy class, which "
        "none can be. Class changes: from one frame of a scan to the next, in order of time."
        f"{expected}",
        "Training images of CNNExp: those of the experiment, on which CNNSyn was trained further.",
        f"The paper trains CNNExp with {published} images and gives no numbers. By its text CNNSyn "
        "makes unphysical changes of class within 10 ps, and CNNExp makes none and finds the "
        "phonons.",
    )
    return Table(pd.DataFrame(cells), caption, "Model", notes)


def _judged(series: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Return what the table of the experiment says of the frames of ``read_series``."""
    predicted = np.array(list(CLASSES))[series["predicted"]]
    after = (series["time"] > 0).to_numpy()
    counts = (
        ((series["kind"] == series["predicted"]).sum(), len(series)),
        ((predicted[after] == EXCITED).sum(), after.sum()),
        (np.isin(predicted, IMPOSSIBLE).sum(), len(series)),
    )
    values = [
        *(share(part, whole, "%") for part, whole in counts),
        (str(class_changes(series, "predicted")), ""),
    ]
    return dict(zip(JUDGED, values, strict=True))


def _steering(dataset: "pd.Series[int]", used: Mapping[str, Path], hparams: Path | None) -> Table:
    lines = _without_c_vae(dataset)
    if "c_vae" in used:
        latent, ends = read_latent(used["c_vae"]), read_means(hparams)
        distances = np.linalg.norm(latent.mean[:, None] - ends, axis=2)
        scores = (latent.distance, distances.min(axis=1), latent.reconstruction_error)
        lines = [*_areas(latent, scores), *_medians(latent, scores)]
    cells = [
        {"row": row, "column": column, "unit": "", "value": value, "interval": interval,
         "published": "", "n_train": count_images(dataset, "latent", "train"), "n_test": n_test}
        for row, n_test, values in lines
        for column, (value, interval) in zip(SCORES, values, strict=True)
    ]  # fmt: skip
    notes = (
        "ROC AUC: probability that an image of a crystal on its way from 2H to 1T' has a lower "
        "score than one of a damaged crystal; 0.5 is chance, below it the order is reversed. "
        "Intervals: 95 %, Newcombe's score method on the variance of Hanley and McNeil, with "
        "images taken as independent.",
        "Medians: intervals 95 %, from the order of the values; none for fewer than 6 images. "
        "Distances are Euclidean, between latent means; the line ends at the mean vectors of the "
        "training images of 2H and 1T'. The nearer mean is the nearer of these two vectors. "
        "Reconstruction error: mean squared error of the pixels.",
        "The paper proposes the distance to the line and gives no numbers.",
    )
    caption = "Steering scores of the C-VAE: telling a phase transformation from damage."
    return Table(pd.DataFrame(cells), caption, "Test images", notes)


def _areas(latent: Latent, scores: Scores) -> Iterator[Line]:
    """Yield the lines on telling transforming from molten crystals, then from all damaged ones."""
    damaged = [kind for kind in latent.kinds if kind == "molten" or kind.startswith("vacancies")]
    wanted = latent.kind == "transforming"
    for kinds in dict.fromkeys([tuple(damaged[:1]), tuple(damaged)]):
        lost = np.isin(latent.kind, kinds)
        if wanted.any() and lost.any():
            areas = [roc_auc(score[wanted], score[lost]) for score in scores]
            names = [kind_name(kind) for kind in kinds]
            row = f"{AUC} {listed([name[0].lower() + name[1:] for name in names])}"
            yield row, int((wanted | lost).sum()), [_printed(*area, "{:.3f}") for area in areas]


def _medians(latent: Latent, scores: Scores) -> Iterator[Line]:
    for kind in latent.kinds:
        chosen = latent.kind == kind
        parts = [score[chosen] for score in scores]
        values = [_printed(np.median(part), *median_interval(part), "{:.3g}") for part in parts]
        yield f"{MEDIAN} {kind_name(kind)}", int(chosen.sum()), values


def _without_c_vae(dataset: "pd.Series[int]") -> list[Line]:
    counts = {kind: count_images(dataset, "latent", "test", kind) for kind in KINDS}
    sizes = {f"{AUC} molten": counts["transforming"] + counts["molten"]}
    sizes |= {f"{MEDIAN} {name}": counts[kind] for kind, name in KINDS.items()}
    return [(row, n_test, [(NOT_RUN, "")] * len(SCORES)) for row, n_test in sizes.items()]


def _printed(value: float, low: float, high: float, form: str) -> tuple[str, str]:
    interval = "" if np.isnan(low) else f"{form.format(low)}\N{EN DASH}{form.format(high)}"
    return form.format(value), interval
