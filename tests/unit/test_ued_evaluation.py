"""Tables and figures of the ultrafast-diffraction study from synthetic evaluations."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import precision_score, recall_score, roc_auc_score

from diffractory.evaluation.metrics import Z_95
from diffractory.evaluation.ued import (
    CLASSES,
    KINDS,
    class_changes,
    median_interval,
    published_confusion,
    read_series,
    roc_auc,
)
from diffractory.evaluation.ued_examples import FRAMES, collect_examples, summarize_images
from diffractory.evaluation.ued_figures import ARCHITECTURE, EXAMPLES, FIGURES, HPARAMS, make_figure
from diffractory.evaluation.ued_images import difference_image, shrunk
from diffractory.evaluation.ued_tables import TABLES, make_table
from diffractory.store import InputError
from diffractory.store.images import ImageReader, write_images

CONTEXT = {"scale": "demo", "dataset": "mote2", "source": "stand_in", "seed": 7}
NAMES = list(CLASSES)
MEANS = {"2h": [0.0, 0.0, 0.0, 0.0], "1t": [4.0, 0.0, 0.0, 0.0]}
STAND_IN = "simulated series (abTEM multislice, frozen phonons) for the unpublished experiment"


def block(name, kind, inputs, outputs, parameters, parent):
    return {"name": name, "kind": kind, "inputs": [inputs], "outputs": [outputs],
            "parameters": parameters, "parent": parent}  # fmt: skip


CNN = [
    block("stem", "Convolution", [2, 87, 87], [16, 87, 87], 1600, ""),
    block("stem.convolution", "Conv2d", [2, 87, 87], [16, 87, 87], 1568, "stem"),
    block("blocks", "Sequential", [16, 87, 87], [64, 29, 29], 400_000, ""),
    block("blocks.0", "ResidualLayer", [16, 87, 87], [32, 87, 87], 75_000, "blocks"),
    block("blocks.0.first", "Convolution", [16, 87, 87], [32, 87, 87], 25_000, "blocks.0"),
    block("blocks.0.second", "Convolution", [32, 87, 87], [32, 87, 87], 50_000, "blocks.0"),
    block("blocks.1", "MaxPool2d", [32, 87, 87], [32, 29, 29], 0, "blocks"),
    block("blocks.2", "ResidualLayer", [32, 29, 29], [64, 29, 29], 300_000, "blocks"),
    block("blocks.2.first", "Convolution", [32, 29, 29], [64, 29, 29], 90_000, "blocks.2"),
    block("classifier", "Linear", [64], [7], 455, ""),
]
C_VAE = [
    block("encoder", "Sequential", [1, 64, 64], [8], 9_000, ""),
    block("encoder.0", "Conv2d", [1, 64, 64], [32, 32, 32], 544, "encoder"),
    block("encoder.1", "ReLU", [32, 32, 32], [32, 32, 32], 0, "encoder"),
    block("encoder.2", "Conv2d", [32, 32, 32], [64, 16, 16], 33_000, "encoder"),
    block("encoder.3", "Flatten", [64, 16, 16], [16384], 0, "encoder"),
    block("encoder.4", "Linear", [16384], [8], 131_080, "encoder"),
    block("decoder", "Sequential", [4], [1, 64, 64], 9_000, ""),
    block("decoder.0", "Linear", [4], [16384], 81_920, "decoder"),
    block("decoder.1", "Unflatten", [16384], [64, 16, 16], 0, "decoder"),
    block("decoder.2", "ConvTranspose2d", [64, 16, 16], [32, 32, 32], 32_800, "decoder"),
    block("decoder.3", "ConvTranspose2d", [32, 32, 32], [1, 64, 64], 513, "decoder"),
]


def pattern(size, spread, stretch=1.0):
    """Return spots on a hexagonal lattice within 1.3 1/angstrom of the centre."""
    q = np.linspace(-1.3, 1.3, size)
    qx, qy = np.meshgrid(q, q)
    image = np.full((size, size), 0.2)
    for h in range(-6, 7):
        for k in range(-6, 7):
            x, y = stretch * 0.33 * (h + k / 2), 0.33 * 3**0.5 / 2 * k
            height = 8 * np.exp(-2 * (x**2 + y**2))
            image += height * np.exp(-((qx - x) ** 2 + (qy - y) ** 2) / (2 * spread**2))
    image[np.hypot(qx, qy) < 0.15] = 0
    return image


def write_store(folder, name, samples, size):
    """Write an image store and its samples; each kind has lattice and spots of its own."""
    rng = np.random.default_rng(5)
    kinds = {kind: k for k, kind in enumerate(dict.fromkeys(samples["kind"]))}
    clean = {kind: pattern(size, 0.03 + 0.004 * k, 1 + 0.01 * k) for kind, k in kinds.items()}
    images = [clean[kind] * rng.uniform(0.3, 1.7, (size, size)) for kind in samples["kind"]]
    attributes = {"pixel_size": 2.6 / (size - 1), "beam_stop": 0.15}
    reference = pattern(size, 0.03)
    store, table = folder / f"{name}.zarr", folder / f"{name}.samples.parquet"
    write_images(store, len(images), [np.array(images)], reference, attributes, np.float16)
    samples.to_parquet(table, index=False)
    return store, table


def synthetic(folder, size=29, count=12, right=0.8):
    """Write stores, evaluations and model files of the study; return the folder."""
    rng = np.random.default_rng(3)
    samples = {
        store: pd.DataFrame(
            [(kind, split) for split in ("train", "validation", "test") for kind in kinds
             for _ in range(count * (2 if split == "train" else 1))],
            columns=["kind", "split"],
        )
        for store, kinds in (("classes", CLASSES), ("latent", KINDS))
    }  # fmt: skip
    time = np.linspace(-5, 20, count)
    kind = np.where(time > 0, "phonons_2h", "pristine_2h")
    samples["experiment"] = pd.DataFrame(
        {"kind": [*kind, *kind[::-1]], "split": ["train"] * count + ["test"] * count,
         "time": [*time, *time[::-1]], "scan": [0] * count + [1] * count}
    )  # fmt: skip
    stores = {name: write_store(folder, name, samples[name], size) for name in samples}
    images, tables = ({name: pair[k] for name, pair in stores.items()} for k in (0, 1))
    collect_examples(images, tables, folder / "examples.parquet", folder / "examples.run.json", 7)
    summarize_images(tables, folder / "dataset.parquet", folder / "dataset.run.json", 7)

    (folder / "experiment").mkdir()
    test = {name: table[table["split"] == "test"] for name, table in samples.items()}
    classified = test["classes"].drop(columns="split")
    for file, table, accuracy in (
        ("cnn_syn", classified, right),
        ("experiment/cnn_syn", samples["experiment"], 0.3),
        ("experiment/cnn_exp", samples["experiment"], 1.0),
    ):
        wrong = rng.choice(NAMES, len(table))
        predicted = np.where(rng.random(len(table)) < accuracy, table["kind"], wrong)
        table.assign(predicted=predicted).to_parquet(folder / f"{file}.parquet", index=False)
    kinds = test["latent"]["kind"].to_numpy()
    along = {"2h": 0, "1t": 4, "molten": -3}
    mean = rng.normal(0, 0.3, (len(kinds), 4))
    mean[:, 0] += [along.get(kind, rng.uniform(0.2, 3.8)) for kind in kinds]
    mean[:, 1] += np.where(kinds == "molten", 3, 0)
    fraction = np.clip(mean[:, 0] / 4, 0, 1)
    latent = pd.DataFrame(mean, columns=[f"latent_{k}" for k in range(4)]).assign(
        kind=kinds,
        distance=np.linalg.norm(mean - fraction[:, None] * [4, 0, 0, 0], axis=1),
        reconstruction_error=rng.uniform(0.01, 0.02, len(kinds)),
    )
    latent.to_parquet(folder / "c_vae.parquet", index=False)
    (folder / "hparams.json").write_text(json.dumps({"means": MEANS}), "utf-8")
    (folder / "cnn_syn.json").write_text(json.dumps(CNN), "utf-8")
    (folder / "c_vae.json").write_text(json.dumps(C_VAE), "utf-8")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return synthetic(tmp_path_factory.mktemp("ued"))


def files(data, names):
    return {Path(name).name: data / f"{name}.parquet" for name in names}


def table(name, data, folder, predictions=None, context=CONTEXT):
    predictions = files(data, TABLES[name]) if predictions is None else predictions
    paths = [folder / f"table_{name}.{suffix}" for suffix in ("csv", "md", "run.json")]
    hparams = data / "hparams.json" if name == "steering" and predictions else None
    make_table(name, data / "dataset.parquet", predictions, context, *paths, hparams)
    return pd.read_csv(paths[0], dtype=str, keep_default_na=False)


def figure(name, data, folder, **changes):
    given = {
        "predictions": files(data, FIGURES[name]),
        "examples": data / "examples.parquet" if name in EXAMPLES else None,
        "architecture": data / f"{ARCHITECTURE[name]}.json" if name in ARCHITECTURE else None,
        "hparams": data / "hparams.json" if name in HPARAMS else None,
    } | changes
    suffixes = ("svg", "png", "csv", "run.json")
    svg, png, csv, run = (folder / f"figure_{name}.{suffix}" for suffix in suffixes)
    make_figure(name, context=CONTEXT, svg=svg, png=png, csv=csv, run=run, **given)
    return pd.read_csv(csv)


def cell(cells, row, column, what="value"):
    found = cells[(cells["row"] == row) & (cells["column"] == column)]
    assert len(found) == 1
    return found[what].iloc[0]


def notes(folder, name):
    return (folder / f"table_{name}.md").read_text("utf-8")


def test_published_counts_are_those_of_the_paper(data, tmp_path):
    counts = published_confusion()
    assert counts.shape == (7, 7)
    assert (counts.sum(), np.trace(counts)) == (6976, 6908)
    assert counts[2].tolist() == [17, 4, 967, 8, 0, 0, 0]
    assert counts[:, 0].tolist() == [992, 1, 17, 4, 4, 0, 0]
    assert counts[6].tolist() == [0, 0, 0, 0, 7, 11, 979]
    # The text calls class 2 the lowest, and so it is.
    assert (np.diag(counts) / counts.sum(axis=1)).argmin() == 2
    cells = table("accuracy", data, tmp_path)
    assert cell(cells, "Deform. 2H", "Accuracy", "published") == f"{100 * 967 / 996:.1f}"
    assert cell(cells, "Ref. 2H", "Precision", "published") == f"{100 * 992 / 1018:.1f}"
    assert cell(cells, "All images", "Accuracy", "published") == f"{100 * 6908 / 6976:.1f}"
    assert "with 967 of 996 or 97 % (97.1 from the counts)" in notes(tmp_path, "accuracy")


def test_accuracy_equals_scikit_learn(data, tmp_path):
    cells = table("accuracy", data, tmp_path)
    said = pd.read_parquet(data / "cnn_syn.parquet")
    for column, score in (("Accuracy", recall_score), ("Precision", precision_score)):
        expected = score(said["kind"], said["predicted"], labels=NAMES, average=None)
        for row, value in zip(CLASSES.values(), expected, strict=True):
            assert cell(cells, row, column) == f"{100 * value:.1f}"
    right = (said["kind"] == said["predicted"]).mean()
    assert 0.5 < right < 1
    assert cell(cells, "All images", "Accuracy") == f"{100 * right:.1f}"
    # The ends of a Wilson interval are the fractions that lie Z_95 deviations from the found one.
    low, high = cell(cells, "All images", "Accuracy", "interval").split("\N{EN DASH}")
    for end in (float(low) / 100, float(high) / 100):
        deviations = abs(right - end) / np.sqrt(end * (1 - end) / len(said))
        assert deviations == pytest.approx(Z_95, abs=0.03)
    assert set(cells["n_train"]) == {"24", "168"}
    assert cell(cells, "Vac. 2H", "Accuracy", "n_test") == "12"
    assert set(cells["stand_in"]) == {""}


def test_everything_right(data, tmp_path):
    said = pd.read_parquet(data / "cnn_syn.parquet")
    path = tmp_path / "right.parquet"
    said.assign(predicted=said["kind"]).to_parquet(path)
    cells = table("accuracy", data, tmp_path, {"cnn_syn": path})
    assert set(cells["value"]) == {"100.0"}
    assert cell(cells, "Vac. 2H", "Accuracy", "interval") == "75.8\N{EN DASH}100.0"
    assert cell(cells, "All images", "Accuracy", "interval").startswith("95.6")


def frames(folder, rows):
    columns = ["scan", "time", "kind", "predicted", "split"]
    path = folder / "frames.parquet"
    pd.DataFrame(rows, columns=columns).to_parquet(path)
    return path


SERIES = [
    (1, 3.0, "phonons_2h", "phonons_2h", "test"),
    (1, -2.0, "pristine_2h", "pristine_2h", "test"),
    (1, 1.0, "phonons_2h", "vacancies_1t", "test"),
    (1, -1.0, "pristine_2h", "strained_2h", "test"),
    (1, 4.0, "phonons_2h", "phonons_2h", "test"),
    (2, -3.0, "pristine_2h", "phonons_2h", "test"),
    (2, 5.0, "phonons_2h", "vacancies_2h", "test"),
    (0, 9.0, "phonons_2h", "phonons_1t", "train"),
]
"""In time, the first scan is called pristine, strained, 1T', phonons and phonons: 3 changes."""


def test_series_by_hand(data, tmp_path):
    path = frames(tmp_path, SERIES)
    series = read_series(path)
    assert series["time"].tolist() == [-2, -1, 1, 3, 4, -3, 5]
    assert class_changes(series, "predicted") == 3 + 1  # from one scan to the next is no change
    assert class_changes(series, "kind") == 1 + 1
    cells = table("experiment", data, tmp_path, {"cnn_exp": path})
    assert cell(cells, "CNNExp", "Accuracy") == f"{300 / 7:.1f}"
    assert cell(cells, "CNNExp", "Phonons after the pump") == "50.0"
    assert cell(cells, "CNNExp", "1T' or vacancies") == f"{200 / 7:.1f}"
    assert cell(cells, "CNNExp", "Class changes") == "4"
    assert cell(cells, "CNNExp", "Accuracy", "n_test") == "7"
    assert cell(cells, "CNNExp", "Accuracy", "n_train") == "12"
    assert cell(cells, "CNNSyn", "Accuracy", "n_train") == "168"
    assert set(cells.loc[cells["row"] == "CNNSyn", "value"]) == {"not run"}
    assert set(cells["published"]) == {""}
    assert "By the labels there are 2." in notes(tmp_path, "experiment")
    assert "Not run: CNNSyn." in notes(tmp_path, "experiment")


def test_the_experiment_is_marked_as_a_stand_in(data, tmp_path):
    assert set(table("experiment", data, tmp_path)["stand_in"]) == {STAND_IN}
    assert f"Stand-ins: {STAND_IN}." in notes(tmp_path, "experiment")
    measured = table("experiment", data, tmp_path, context=CONTEXT | {"source": "folder"})
    assert set(measured["stand_in"]) == {
        "another measured series in place of the unpublished experiment"
    }
    figure("4", data, tmp_path)
    assert STAND_IN in " ".join((tmp_path / "figure_4.svg").read_text("utf-8").split())


def test_roc_auc_by_hand_and_against_scikit_learn():
    # Of 6 pairs, 4 are in order and one is a tie.
    assert roc_auc(np.array([1.0, 3.0]), np.array([2.0, 3.0, 4.0]))[0] == pytest.approx(4.5 / 6)
    rng = np.random.default_rng(2)
    for shift in (-1, 0, 2):
        positive = rng.integers(0, 6, 40).astype(float)
        negative = rng.integers(0, 6, 23) + shift * 1.0
        truth = np.repeat([1, 0], [40, 23])
        expected = roc_auc_score(truth, -np.concatenate([positive, negative]))
        area, low, high = roc_auc(positive, negative)
        assert area == pytest.approx(expected)
        assert 0 <= low < area < high <= 1


def test_interval_of_roc_auc():
    rng = np.random.default_rng(4)
    positive, negative = rng.normal(0, 1, 150), rng.normal(1, 1, 100)
    _, low, high = roc_auc(positive, negative)
    areas = [roc_auc(rng.choice(positive, 150), rng.choice(negative, 100))[0] for _ in range(400)]
    np.testing.assert_allclose((low, high), np.quantile(areas, [0.025, 0.975]), atol=0.02)
    # Where nothing is mixed up the interval still says how few images there are.
    few, many = (roc_auc(np.zeros(n), np.ones(n)) for n in (10, 1000))
    assert few[0] == many[0] == few[2] == 1
    assert 0.7 < few[1] < 0.9 < many[1] < 1
    reverse = roc_auc(np.ones(10), np.zeros(10))
    np.testing.assert_allclose(reverse, [0, 0, 1 - few[1]], atol=1e-12)


def test_interval_of_a_median():
    values = np.array([5.0, 1, 2, 9, 7, 3, 8, 4, 6, 10])
    assert median_interval(values) == (2, 9)  # P(fewer than 2 of 10 heads) is 1.1 %, of 3 5.5 %
    assert median_interval(values[:6]) == (1, 9)
    assert np.isnan(median_interval(values[:5])).all()


def test_steering(data, tmp_path):
    cells = table("steering", data, tmp_path)
    said = pd.read_parquet(data / "c_vae.parquet")
    latent = said.filter(like="latent_").to_numpy()
    nearest = np.minimum(*(np.linalg.norm(latent - MEANS[kind], axis=1) for kind in MEANS))
    scores = {
        "Distance to the 2H\N{EN DASH}1T' line": said["distance"],
        "Distance to the nearer mean": pd.Series(nearest),
        "Reconstruction error": said["reconstruction_error"],
    }
    chosen = said["kind"].isin(["transforming", "molten"])
    for column, score in scores.items():
        area = roc_auc_score(said["kind"][chosen] == "transforming", -score[chosen])
        assert cell(cells, "ROC AUC, transforming against molten", column) == f"{area:.3f}"
        for kind, name in KINDS.items():
            median = score[said["kind"] == kind].median()
            assert cell(cells, f"Median, {name}", column) == f"{median:.3g}"
    assert cell(cells, "Median, 2H", "Reconstruction error", "n_test") == "12"
    assert cell(cells, "ROC AUC, transforming against molten", column, "n_test") == "24"
    assert set(cells["n_train"]) == {"120"}
    rows = cells["row"].tolist()
    assert table("steering", data, tmp_path, {})["row"].tolist() == rows
    assert "Not run: C-VAE." in notes(tmp_path, "steering")


def test_steering_with_vacancies_and_without_molten(data, tmp_path):
    said = pd.read_parquet(data / "c_vae.parquet")
    path = tmp_path / "c_vae.parquet"
    damaged = said[said["kind"] == "1t"].assign(kind="vacancies_2h")
    pd.concat([said, damaged]).to_parquet(path)
    rows = table("steering", data, tmp_path, {"c_vae": path})["row"].unique().tolist()
    auc = "ROC AUC, transforming against"
    assert rows[:2] == [f"{auc} molten", f"{auc} molten and vac. 2H"]
    assert rows[-1] == "Median, Vac. 2H"
    said[said["kind"] != "molten"].to_parquet(path)
    rows = table("steering", data, tmp_path, {"c_vae": path})["row"]
    assert not rows.str.startswith("ROC").any()


@pytest.mark.parametrize("name", TABLES)
def test_tables_without_models(name, data, tmp_path):
    cells = table(name, data, tmp_path, {})
    assert set(cells["value"]) == {"not run"}
    assert (cells["n_test"].astype(int) > 0).all()
    assert set(cells["interval"]) == {""}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_the_same_again_and_say_their_data(name, data, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        shown = figure(name, data, folder)
        assert len(shown) > 1
        assert set(shown["scale"]) == {"demo"}
    for suffix in ("svg", "png", "csv"):
        one, two = (folder / f"figure_{name}.{suffix}" for folder in (first, second))
        assert one.read_bytes() == two.read_bytes()
    record = json.loads((first / f"figure_{name}.run.json").read_text("utf-8"))
    assert record["config"]["figure"] == name


def test_figure_1_opens_the_first_layer(data, tmp_path):
    shown = figure("1", data, tmp_path)["name"].tolist()
    assert shown == [entry["name"] for entry in CNN if entry["parent"] != "blocks.2"]
    assert "experts" not in (tmp_path / "figure_1.svg").read_text("utf-8")


def test_figure_3_has_the_counts(data, tmp_path):
    shown = figure("3", data, tmp_path).set_index(["matrix", "true", "predicted"])
    said = pd.read_parquet(data / "cnn_syn.parquet")
    counts = said.groupby(["kind", "predicted"]).size()
    assert len(shown.loc["here"]) == len(counts)
    for (kind, predicted), count in counts.items():
        line = shown.loc["here", CLASSES[kind], CLASSES[predicted]]
        assert line["images"] == count
        assert line["percent"] == pytest.approx(100 * count / 12, abs=0.005)
    assert shown.loc[("published", "Deform. 2H", "Ref. 2H"), "percent"] == 1.71


def test_figure_4_has_the_test_frames_in_order(data, tmp_path):
    shown = figure("4", data, tmp_path)
    assert shown["scan"].unique().tolist() == [1]
    of_exp = shown[shown["model"] == "CNNExp"]
    assert (np.diff(of_exp["time"]) > 0).all()
    assert (of_exp["true"] == of_exp["predicted"]).all()
    assert of_exp["true"].tolist() == np.where(of_exp["time"] > 0, "Phon. 2H", "Ref. 2H").tolist()
    one = figure("4", data, tmp_path, predictions={"cnn_exp": data / "experiment/cnn_exp.parquet"})
    assert set(one["model"]) == {"CNNExp"}
    assert "Not run: CNNSyn." in (tmp_path / "figure_4.svg").read_text("utf-8")


def test_one_image_of_each_kind_is_enough(data, tmp_path):
    path = tmp_path / "c_vae.parquet"
    pd.read_parquet(data / "c_vae.parquet").groupby("kind").head(1).to_parquet(path)
    cells = table("steering", data, tmp_path, {"c_vae": path})
    assert (
        cell(cells, "ROC AUC, transforming against molten", "Reconstruction error", "n_test") == "2"
    )
    assert set(cells.loc[cells["row"].str.startswith("Median"), "interval"]) == {""}
    for name in ("6", "7"):
        assert len(figure(name, data, tmp_path, predictions={"c_vae": path})) == 5


def test_places_along_and_across_the_line(data, tmp_path):
    shown = figure("6", data, tmp_path)
    mean = pd.read_parquet(data / "c_vae.parquet").filter(like="latent_").to_numpy()
    np.testing.assert_allclose(shown["along"], mean[:, 0], atol=0.006)
    # Molten images spread along the second axis, which the plane hence shows.
    assert np.corrcoef(shown["across"], mean[:, 1])[0, 1] > 0.99
    assert (np.abs(shown["across"]) <= np.linalg.norm(mean[:, 1:], axis=1) + 0.006).all()


def test_t_sne_keeps_molten_images_apart(data, tmp_path):
    shown = figure("7", data, tmp_path)
    assert len(shown) == 60
    points = shown[["x", "y"]].to_numpy()
    molten = (shown["kind"] == "molten").to_numpy()
    distance = np.linalg.norm(points[:, None] - points, axis=2) + np.diag([np.inf] * 60)
    assert (molten[distance.argmin(axis=1)] == molten).mean() > 0.9


def test_examples_are_the_first_test_images(data):
    examples = pd.read_parquet(data / "examples.parquet")
    assert examples.groupby("figure").size().to_dict() == {
        "2": 7, "4": FRAMES, "6": 5, "reference": 1,
    }  # fmt: skip
    store = ImageReader(data / "classes.zarr")
    samples = pd.read_parquet(data / "classes.samples.parquet")
    test = samples[samples["split"] == "test"]
    for _, row in examples[examples["figure"] == "2"].iterrows():
        first = test.index[test["kind"] == row["kind"]][:1].to_numpy()
        image = row["image"].reshape(row["rows"], row["columns"])
        np.testing.assert_array_equal(image, store.read(first)[0])
    reference = examples[examples["figure"] == "reference"]["image"].iloc[0]
    np.testing.assert_array_equal(reference, store.reference.ravel())
    frames = examples[examples["figure"] == "4"]
    times = np.linspace(-5, 20, 12)
    np.testing.assert_allclose(frames["time"], times[[0, 3, 6, 8, 11]])
    assert examples.loc[examples["figure"] != "4", "time"].isna().all()


def test_dataset_counts_images(data):
    dataset = pd.read_parquet(data / "dataset.parquet").set_index(["store", "kind", "split"])
    assert dataset["images"].sum() == 4 * 12 * (7 + 5) + 24
    assert dataset.loc[("latent", "molten", "train"), "images"] == 24
    assert dataset.loc[("classes", "strained_1t", "test"), "images"] == 12


def test_signs_of_a_difference():
    image, reference = np.array([[5.0, 2.0], [1.0, 2.0]]), np.array([[1.0, 2.0], [5.0, 3.0]])
    # The greatest increase and decrease are 4; one quarter of it is one half.
    np.testing.assert_allclose(difference_image(image, reference), [[1, 0], [-1, -0.5]])
    assert (difference_image(image, image) == 0).all()


def test_large_images_are_averaged():
    image = np.arange(261.0 * 261).reshape(261, 261)
    small = shrunk(image)
    assert small.shape == (130, 130)
    assert small[3, 5] == image[6:8, 10:12].mean()
    assert shrunk(image[:87, :87]).shape == (87, 87)


def broken(folder, path, **columns):
    """Write a copy of a table with other columns; None drops one."""
    content = pd.read_parquet(path)
    for name, value in columns.items():
        content = content.drop(columns=name) if value is None else content.assign(**{name: value})
    content.to_parquet(folder / "broken.parquet")
    return folder / "broken.parquet"


@pytest.mark.parametrize(
    ("name", "file", "columns", "message"),
    [
        ("accuracy", "cnn_syn", {"predicted": None}, "predicted"),
        ("accuracy", "cnn_syn", {"predicted": "liquid"}, "'liquid'"),
        ("experiment", "experiment/cnn_exp", {"split": "train"}, "no row"),
        ("experiment", "experiment/cnn_exp", {"time": np.nan}, "rows without time"),
        ("steering", "c_vae", {"latent_2": np.inf}, "not finite"),
        ("steering", "c_vae", {"distance": None}, "distance"),
    ],
)
def test_broken_predictions_are_named(name, file, columns, message, data, tmp_path):
    path = broken(tmp_path, data / f"{file}.parquet", **columns)
    with pytest.raises(InputError, match=message) as error:
        table(name, data, tmp_path, {Path(file).name: path})
    assert str(path) in str(error.value)


def test_a_damaged_file_is_named(data, tmp_path):
    path = tmp_path / "cnn_syn.parquet"
    path.write_bytes(b"no table")
    with pytest.raises(InputError, match=r"cnn_syn\.parquet"):
        table("accuracy", data, tmp_path, {"cnn_syn": path})
    with pytest.raises(InputError, match=r"cnn_syn\.parquet"):
        figure("2", data, tmp_path, examples=path)


@pytest.mark.parametrize("content", ["{}", '{"means": {"2h": [0, 0, 0, 0]}}', "["])
def test_broken_hparams_are_named(content, data, tmp_path):
    path = tmp_path / "hparams.json"
    path.write_text(content, "utf-8")
    with pytest.raises(InputError, match="mean vectors of 2h and 1t"):
        figure("6", data, tmp_path, hparams=path)
    with pytest.raises(InputError, match="not given"):
        figure("6", data, tmp_path, hparams=None)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"rows": 7}, "does not hold images"),
        ({"image": None}, "image"),
        ({"figure": "9"}, "no row to show"),
    ],
)
def test_broken_examples_are_named(columns, message, data, tmp_path):
    path = broken(tmp_path, data / "examples.parquet", **columns)
    with pytest.raises(InputError, match=message):
        figure("2", data, tmp_path, examples=path)


@pytest.mark.parametrize("name", [name for name in FIGURES if name != "2"])
def test_figures_of_models_that_were_not_run(name, data, tmp_path):
    with pytest.raises(InputError, match="was not run: train it"):
        figure(name, data, tmp_path, predictions={}, architecture=None)


def test_names_and_images_that_are_not_there(data, tmp_path):
    with pytest.raises(InputError, match="no table 9 of the ued study"):
        table("9", data, tmp_path, {})
    with pytest.raises(InputError, match="no figure 9 of the ued study"):
        make_figure("9", {}, CONTEXT, *[tmp_path / name for name in "abcd"])
    with pytest.raises(InputError, match="images to show are not given"):
        figure("2", data, tmp_path, examples=None)
    encoder = tmp_path / "architecture.json"
    encoder.write_text(json.dumps(C_VAE[:6]), "utf-8")
    with pytest.raises(InputError, match="no encoder and decoder"):
        figure("5", data, tmp_path, architecture=encoder)
    one = tmp_path / "c_vae.parquet"
    pd.read_parquet(data / "c_vae.parquet").head(3).to_parquet(one)
    with pytest.raises(InputError, match="too few for a t-SNE"):
        figure("7", data, tmp_path, predictions={"c_vae": one})


def test_samples_must_fit_their_store(data, tmp_path):
    stores = {name: data / f"{name}.zarr" for name in ("classes", "latent", "experiment")}
    samples = {name: data / f"{name}.samples.parquet" for name in stores}
    outputs = tmp_path / "examples.parquet", tmp_path / "run.json"
    with pytest.raises(InputError, match="rows for"):
        collect_examples(stores, samples | {"latent": samples["classes"]}, *outputs, 7)
    path = broken(tmp_path, samples["latent"], split="train")
    with pytest.raises(InputError, match="no image of the test split"):
        collect_examples(stores, samples | {"latent": path}, *outputs, 7)
    path = broken(tmp_path, samples["latent"], kind=None)
    with pytest.raises(InputError, match="kind"):
        summarize_images({"latent": path}, *outputs, 7)
