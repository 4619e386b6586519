"""Tables and figures of the symmetry study from synthetic predictions."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import brier_score_loss, log_loss

from diffractory.evaluation.published import published_column, published_values
from diffractory.evaluation.symmetry import read_dataset, read_predictions
from diffractory.evaluation.symmetry_figures import FIGURES, make_figure
from diffractory.evaluation.symmetry_tables import HYPERPARAMETERS, TABLES, make_table
from diffractory.store import CRYSTAL_SYSTEMS, InputError, generator

CONTEXT = {
    "scale": "demo",
    "dataset": "toy",
    "source": "prototypes",
    "split_by": "material",
    "seed": 7,
    "aggregate": 10,
    "ablations": {
        "short": {"of": "ours", "training": {"epochs": 1, "rotate": True}},
        "narrow": {"of": "mvof_ml", "network": {"width": 8}},
    },
}
MODELS = {"random_forest": "RF", "pe_ag_gmoe": "PE-AG-GMoE", "ours": "Ours"}
SPACE_GROUPS = ((1, 2), (3, 15), (16, 74), (75, 142), (143, 167), (168, 194), (195, 230))
PROBABILITIES = [f"probability_{system}" for system in CRYSTAL_SYSTEMS]
DASH = "\N{EN DASH}"
SAME_TYPES = (
    "substituted prototypes, the same types in training and test, in place of the Materials Project"
)
OTHER_TYPES = "substituted prototypes, other types in the test, in place of the Materials Project"
REBUILT = "MVOF-ML rebuilt from its description"
# Those of the stage that perturbs patterns, and of the scan, have tests of their own.
OWN_TABLES = [name for name in TABLES if name not in ("robustness", "scan", "scan_confusion")]
OWN_FIGURES = [name for name in FIGURES if name not in ("robustness", "2")]
HPARAMS = {
    "network": {
        "input_dim": 32,
        "hidden_dim": 16,
        "n_layers": 3,
        "n_heads": 2,
        "dropout": 0.25,
        "top_k": 1,
        "n_experts_adjacency": 5,
        "n_experts_graphormer": 6,
        "balance_weight": 0.125,
    },
    "training": {"learning_rate": 1e-05},
    "loss": "cross-entropy",
}
ARCHITECTURE = [
    {"name": name, "kind": "Linear", "inputs": [[45, 3]], "outputs": [[45, 8]], "parameters": 32,
     "depth": 1, "parent": parent}
    for name, parent in (
        ("encoder", ""), ("encoder.0", "encoder"), ("graph", ""), ("graph.a", "graph"),
        ("graphormer", ""), ("graphormer.layers.0", "graphormer"),
    )
]  # fmt: skip


def synthetic(folder, n_materials=300):
    """Write a dataset and predictions of four models of different skill; return their paths."""
    rng = np.random.default_rng(3)
    system = rng.integers(0, 7, n_materials)
    dataset = pd.DataFrame(
        {
            "material_id": [f"toy-{k}" for k in rng.permutation(n_materials)],
            "split": rng.choice(["train", "validation", "test"], n_materials, p=[0.3, 0.1, 0.6]),
            "crystal_system": np.array(CRYSTAL_SYSTEMS)[system],
            "space_group": [
                rng.integers(SPACE_GROUPS[k][0], SPACE_GROUPS[k][1] + 1) for k in system
            ],
            "n_patterns": rng.integers(4, 30, n_materials),
        }
    )
    dataset.to_parquet(folder / "dataset.parquet", index=False)
    test = dataset[dataset["split"] == "test"]
    rows = test.loc[test.index.repeat(test["n_patterns"])].reset_index(drop=True)
    truth = rows["crystal_system"].map(CRYSTAL_SYSTEMS.index).to_numpy()
    paths = {}
    skills = {"random_forest": 1.0, "pe_ag_gmoe": 2.5, "mvof_ml": 1.5, "ours": 3.0}
    for model, skill in skills.items():
        logits = rng.normal(size=(len(rows), 7)) + skill * np.eye(7)[truth]
        probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        predicted = probability.argmax(axis=1)
        space_group = np.array([rng.integers(*SPACE_GROUPS[k], endpoint=True) for k in predicted])
        known = rng.random(len(rows)) < 0.6
        table = rows[["material_id", "crystal_system", "space_group"]].assign(
            pattern=rng.permutation(len(rows)),
            predicted_crystal_system=np.array(CRYSTAL_SYSTEMS)[predicted],
            predicted_space_group=np.where(known, rows["space_group"], space_group),
            probability_space_group=rng.random(len(rows)),
        )
        table[PROBABILITIES] = probability
        if model == "mvof_ml":  # which has opinions, and none on space groups
            table = table.drop(columns=["predicted_space_group", "probability_space_group"])
            table["uncertainty"] = rng.uniform(0.1, 1, len(rows))
            table[PROBABILITIES] *= 1 - table[["uncertainty"]].to_numpy()
            table[PROBABILITIES] += table[["uncertainty"]].to_numpy() / 7
        paths[model] = folder / f"{model}.parquet"
        table.to_parquet(paths[model], index=False)
    return folder / "dataset.parquet", paths


def written(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), "utf-8")
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return synthetic(tmp_path_factory.mktemp("predictions"))


def table(name, data, folder, predictions=None, context=CONTEXT, hparams=HPARAMS):
    dataset, paths = data
    predictions = paths if predictions is None else predictions
    hparams = hparams and written(folder / "model" / "hparams.json", hparams)
    paths = [folder / f"table_{name}.{suffix}" for suffix in ("csv", "md", "run.json")]
    make_table(name, dataset, predictions, context, *paths, hparams)
    return pd.read_csv(paths[0], dtype=str, keep_default_na=False)


def figure(name, data, folder, predictions=None, architecture=ARCHITECTURE):
    dataset, paths = data
    predictions = paths if predictions is None else predictions
    architecture = architecture and written(folder / "model" / "architecture.json", architecture)
    suffixes = ("svg", "png", "csv", "run.json")
    paths = [folder / f"figure_{name}.{suffix}" for suffix in suffixes]
    make_figure(name, dataset, predictions, CONTEXT, *paths, architecture)
    return pd.read_csv(paths[2])


def cell(cells, row, column, what="value"):
    found = cells[(cells["row"] == row) & (cells["column"] == column)]
    assert len(found) == 1
    return found[what].iloc[0]


def drawn_by_loop(path, count, draw):
    """Yield the drawn rows of one material at a time."""
    predictions = pd.read_parquet(path).sort_values("pattern")
    for material, group in predictions.groupby("material_id"):
        keys = generator(CONTEXT["seed"], "aggregate", material).random((draw + 1, len(group)))
        yield material, group.iloc[np.argsort(keys[draw])[:count]]


def votes_by_loop(path, target, count=CONTEXT["aggregate"], draw=0):
    """Vote again, one material at a time, with plain pandas."""
    winners = {}
    for material, group in drawn_by_loop(path, count, draw):
        counts = group[f"predicted_{target}"].value_counts()
        leading = counts[counts == counts.max()].index
        if target == "crystal_system":
            score = {name: group[f"probability_{name}"].mean() for name in leading}
        else:
            score = group.groupby("predicted_space_group")["probability_space_group"].sum()
        winner = max(leading, key=lambda name: score[name])
        winners[material] = (group["crystal_system"].iloc[0], winner == group[target].iloc[0])
    return pd.DataFrame(winners.values(), columns=["system", "right"])


def fused_by_loop(path, count, draw=0):
    """Fuse again, one pattern after the other, with Dempster's rule as it is printed."""
    outcomes = []
    for _, group in drawn_by_loop(path, count, draw):
        belief, uncertainty = np.zeros(7), 1.0
        for p, u in zip(group[PROBABILITIES].to_numpy(), group["uncertainty"], strict=True):
            other = p - u / 7
            conflict = belief.sum() * other.sum() - belief @ other
            belief = (belief * other + belief * u + other * uncertainty) / (1 - conflict)
            uncertainty = uncertainty * u / (1 - conflict)
        fused = belief + uncertainty / 7
        outcomes.append(
            (CRYSTAL_SYSTEMS[fused.argmax()], fused.max(), group["crystal_system"].iloc[0])
        )
    return pd.DataFrame(outcomes, columns=["predicted", "confidence", "true"])


@pytest.mark.parametrize(("number", "target"), [("3", "crystal_system"), ("4", "space_group")])
def test_tables_3_and_4_equal_an_independent_computation(number, target, data, tmp_path):
    cells = table(number, data, tmp_path)
    for model, name in MODELS.items():
        predictions = pd.read_parquet(data[1][model])
        single = pd.DataFrame(
            {
                "system": predictions["crystal_system"],
                "right": predictions[f"predicted_{target}"] == predictions[target],
            }
        )
        voted = votes_by_loop(data[1][model], target)
        for column, items in ((name, single), (f"{name} (Agg.)", voted)):
            by_system = items.groupby("system")["right"].mean()
            for system in CRYSTAL_SYSTEMS:
                expected = f"{100 * by_system[system]:.1f}"
                assert cell(cells, system.capitalize(), column) == expected
                n_test = cell(cells, system.capitalize(), column, "n_test")
                assert int(n_test) == (items["system"] == system).sum()
            without = by_system.drop("triclinic").mean()
            assert cell(cells, "All test items", column) == f"{100 * items['right'].mean():.1f}"
            assert cell(cells, "Mean of systems", column) == f"{100 * by_system.mean():.1f}"
            assert cell(cells, "Mean without triclinic", column) == f"{100 * without:.1f}"
    assert float(cell(cells, "All test items", "RF (Agg.)")) > float(
        cell(cells, "All test items", "RF")
    )


def test_table_3_has_mvof_ml_fused_and_without_published_values(data, tmp_path):
    cells = table("3", data, tmp_path)
    predictions = pd.read_parquet(data[1]["mvof_ml"])
    right = predictions["crystal_system"] == predictions["predicted_crystal_system"]
    assert cell(cells, "All test items", "MVOF-ML") == f"{100 * right.mean():.1f}"
    fused = fused_by_loop(data[1]["mvof_ml"], CONTEXT["aggregate"])
    together = f"{100 * (fused['true'] == fused['predicted']).mean():.1f}"
    assert cell(cells, "All test items", "MVOF-ML (Agg.)") == together
    assert set(cells.loc[cells["column"].str.startswith("MVOF-ML"), "published"]) == {""}
    header = (tmp_path / "table_3.md").read_text("utf-8").splitlines()[2]
    assert "| RF (%) | published | MVOF-ML (%) | Ours (%) | PE-AG-GMoE (Agg.) (%) |" in header


def test_published_values_stand_beside_ours(data, tmp_path):
    cells = table("3", data, tmp_path)
    assert cell(cells, "Orthorhombic", "PE-AG-GMoE (Agg.)", "published") == "99.0"
    assert cell(cells, "Triclinic", "RF", "published") == DASH
    # Each published average stands in the row of its own kind, and only there.
    assert cell(cells, "All test items", "PE-AG-GMoE", "published") == "89.2"
    assert cell(cells, "Mean without triclinic", "RF (Agg.)", "published") == "85.5"
    assert cell(cells, "All test items", "RF", "published") == ""
    cells = table("4", data, tmp_path)
    assert cell(cells, "Cubic", "PE-AG-GMoE", "published") == "86.1"
    assert "86.0, not 86.1" in (tmp_path / "table_4.md").read_text("utf-8")
    cells = table("1", data, tmp_path)
    assert cell(cells, "MVOF-ML", "All test items", "published") == "0.55"
    assert cell(cells, "RF", "Training patterns", "published") == "2765943"
    assert published_column("symmetry", 6, "Value")["Number of encoder layers"] == "8"


def test_published_averages_are_what_the_notes_say():
    """The class values and counts of the paper give its averages only in this way."""
    names = [system.capitalize() for system in CRYSTAL_SYSTEMS]
    for number in (3, 4):
        values = published_column("symmetry", number, "PE-AG-GMoE")
        weights = published_column("symmetry", 2, "Patterns")[names].astype(int)
        pooled = np.average(values[names].astype(float), weights=weights)
        assert f"{pooled:.1f}" == values["Accuracy (avg.)"]
    for number in (3, 4):
        for column in ("RF", "RF (Agg.)"):
            values = published_column("symmetry", number, column)
            assert f"{values[names[1:]].astype(float).mean():.1f}" == values["Accuracy (avg.)"]


def test_published_file_is_consistent_with_itself():
    values = published_values()
    assert not values.duplicated(["study", "table", "row", "column"]).any()
    names = [system.capitalize() for system in CRYSTAL_SYSTEMS]
    for number, total in ((5, 2765943), (2, 921888)):
        assert published_column("symmetry", number, "Patterns")[names].astype(int).sum() == total
    precision, recall, f1 = (
        published_column("symmetry", 2, name)[names].astype(float)
        for name in ("Precision", "Recall", "F1")
    )
    np.testing.assert_allclose(f1, 2 * precision * recall / (precision + recall), atol=0.1)


def test_tables_1_and_2_agree_with_table_3(data, tmp_path):
    first, second, third = (table(number, data, tmp_path) for number in ("1", "2", "3"))
    for name in ("RF", "PE-AG-GMoE"):
        for row in ("All test items", "Mean of systems", "Mean without triclinic"):
            fraction = float(cell(first, name, row))
            assert fraction == pytest.approx(float(cell(third, row, name)) / 100, abs=1.1e-3)
    for system in CRYSTAL_SYSTEMS:
        recall = cell(second, system.capitalize(), "Recall")
        assert recall == cell(third, system.capitalize(), "PE-AG-GMoE")
    assert set(cell(first, "RF", "All test items", "interval")) >= {"0", ".", DASH}


def test_our_own_model_has_no_published_values(data, tmp_path):
    for number in ("1", "3", "4"):
        cells = table(number, data, tmp_path)
        ours = cells[cells["row"].eq("Ours") | cells["column"].str.startswith("Ours")]
        assert len(ours)
        assert set(ours["published"]) == {""}
        assert "not run" not in set(ours["value"])
    assert table("1", data, tmp_path)["row"].iloc[-1] == "Ours"
    assert table("3", data, tmp_path)["column"].iloc[-1] == "Ours (Agg.)"


def test_table_6_holds_what_was_built(data, tmp_path):
    cells = table("6", data, tmp_path)
    assert list(cells["row"]) == list(HYPERPARAMETERS)
    assert dict(zip(cells["row"], cells["value"], strict=True)) == {
        "Input feature dimension": "32",
        "Hidden dimension": "16",
        "Number of encoder layers": "3",
        "Attention heads per layer": "2",
        "Dropout rate": "0.25",
        "Learning rate": "1e-05",
        "Top-k experts in MoE layers": "1",
        "Number of MoE experts (adjacency)": "5",
        "Number of MoE experts (Graphomer)": "6",
        "Loss function": "cross-entropy",
        "Load balancing weight (alpha)": "0.125",
    }
    assert cell(cells, "Number of MoE experts (adjacency)", "PE-AG-GMoE", "published") == "4"
    assert "hparams.json" in (tmp_path / "table_6.run.json").read_text("utf-8")
    cells = table("6", data, tmp_path, hparams=None)
    assert set(cells["value"]) == {"not run"}
    assert "Not run: PE-AG-GMoE." in (tmp_path / "table_6.md").read_text("utf-8")


def test_table_of_calibration_equals_scikit_learn(data, tmp_path):
    cells = table("calibration", data, tmp_path)
    predictions = pd.read_parquet(data[1]["mvof_ml"])
    truth = predictions["crystal_system"].map(CRYSTAL_SYSTEMS.index)
    probability = predictions[PROBABILITIES].to_numpy()
    labels = range(7)
    brier = brier_score_loss(truth, probability, scale_by_half=False, labels=labels)
    assert cell(cells, "MVOF-ML", "Brier score") == f"{brier:.3f}"
    likelihood = log_loss(truth, probability, labels=labels)
    assert cell(cells, "MVOF-ML", "NLL (nat)") == f"{likelihood:.3f}"
    bins = pd.cut(probability.max(axis=1), np.linspace(0, 1, 16))
    right = pd.Series(probability.argmax(axis=1) == truth)
    by_bin = pd.DataFrame({"p": probability.max(axis=1), "right": right}).groupby(
        bins, observed=True
    )
    gaps = (by_bin["p"].mean() - by_bin["right"].mean()).abs()
    expected = (gaps * by_bin.size()).sum() / len(right)
    assert cell(cells, "MVOF-ML", "ECE") == f"{expected:.3f}"
    assert cell(cells, "MVOF-ML", "MCE") == f"{gaps.max():.3f}"
    assert cell(cells, "RF", "ECE", "n_test") == str(len(truth))
    coverage = "Coverage at 90 % accuracy"
    by_confidence = right[np.argsort(-probability.max(axis=1))].to_numpy()
    good = np.cumsum(by_confidence) / np.arange(1, len(right) + 1) >= 0.9
    assert (
        cell(cells, "MVOF-ML", coverage) == f"{100 * (good.nonzero()[0][-1] + 1) / len(right):.1f}"
    )
    assert cell(cells, "MVOF-ML", coverage, "unit") == "%"
    words = (tmp_path / "table_calibration.md").read_text("utf-8")
    assert "with at least 90 % of the answers right" in words
    assert "published |" not in words


def test_models_without_predictions_are_shown_as_not_run(data, tmp_path):
    predictions = {"random_forest": data[1]["random_forest"]}
    for number in ("1", "2", "3", "4", "calibration", "prototypes", "ablations"):
        cells = table(number, data, tmp_path, predictions)
        ours = cells["column"].str.startswith("RF") | (cells["row"] == "RF")
        scored = cells["unit"] != "count"
        assert (cells.loc[scored & ~ours, "value"] == "not run").all()
        assert (cells.loc[scored & ~ours, "interval"] == "").all()
        assert not (cells.loc[ours, "value"] == "not run").any()
        assert "Not run: " in (tmp_path / f"table_{number}.md").read_text("utf-8")
    cells = table("3", data, tmp_path, {})
    assert set(cells["value"]) == {"not run"}
    assert cell(cells, "Cubic", "RF", "published") == "92"
    assert int(cell(cells, "All test items", "RF", "n_test")) > 0


def test_rows_say_what_they_rest_on(data, tmp_path):
    cells = table("3", data, tmp_path)
    ours = ~cells["column"].str.startswith("MVOF-ML")
    assert set(cells.loc[ours, "stand_in"]) == {SAME_TYPES}
    assert set(cells.loc[~ours, "stand_in"]) == {f"{SAME_TYPES}; {REBUILT}"}
    words = (tmp_path / "table_3.md").read_text("utf-8")
    assert f"seed 7. Stand-ins: {SAME_TYPES}; {REBUILT}.\n" in words
    assert words.count(SAME_TYPES) == 1
    rows = table("1", data, tmp_path)
    assert cell(rows, "MVOF-ML", "All test items", "stand_in") == f"{SAME_TYPES}; {REBUILT}"
    assert cell(rows, "Ours", "All test items", "stand_in") == SAME_TYPES
    assert set(cells["dataset"] + cells["scale"] + cells["seed"]) == {"toydemo7"}
    dataset = pd.read_parquet(data[0])
    train = dataset[(dataset["split"] == "train") & (dataset["crystal_system"] == "cubic")]
    assert int(cell(cells, "Cubic", "RF", "n_train")) == train["n_patterns"].sum()
    assert int(cell(cells, "Cubic", "RF (Agg.)", "n_train")) == len(train)
    cells = table("3", data, tmp_path, context=CONTEXT | {"source": "materials_project"})
    assert set(cells["stand_in"]) == {"", REBUILT}
    assert f"seed 7. Stand-ins: {REBUILT}." in (tmp_path / "table_3.md").read_text("utf-8")
    harder = table("3", data, tmp_path, context=CONTEXT | {"split_by": "prototype"})
    assert "other types in the test" in harder["stand_in"].iloc[0]
    table("3", data, tmp_path, context=CONTEXT | {"source": "materials_project"})
    record = json.loads((tmp_path / "table_3.run.json").read_text("utf-8"))
    assert len(record["inputs"]) == 6  # and the hyperparameters
    table("5", data, tmp_path, context=CONTEXT | {"source": "materials_project"})
    assert (tmp_path / "table_5.md").read_text("utf-8").endswith("scale demo, seed 7.\n")


def test_test_items_are_those_that_were_predicted(data, tmp_path):
    predictions = pd.read_parquet(data[1]["random_forest"])
    part = predictions[predictions["pattern"] % 2 == 0]
    part.to_parquet(tmp_path / "part.parquet", index=False)
    inputs = {"random_forest": tmp_path / "part.parquet"}
    cells = table("3", data, tmp_path, inputs)
    assert cell(cells, "All test items", "RF", "n_test") == str(len(part))
    assert cell(cells, "All test items", "PE-AG-GMoE", "n_test") == str(len(predictions))
    assert cell(table("1", data, tmp_path, inputs), "RF", "Test patterns") == str(len(part))


def test_table_5_counts_the_training_split(data, tmp_path):
    context = {key: value for key, value in CONTEXT.items() if key != "aggregate"}
    cells = table("5", data, tmp_path, {}, context)
    train = pd.read_parquet(data[0]).query("split == 'train'")
    trigonal = train[train["crystal_system"] == "trigonal"]
    assert cell(cells, "Trigonal", "Patterns") == str(trigonal["n_patterns"].sum())
    assert cell(cells, "Trigonal", "Materials") == str(len(trigonal))
    assert cell(cells, "Trigonal", "Space groups") == str(trigonal["space_group"].nunique())
    assert cell(cells, "Total", "Space groups") == str(train["space_group"].nunique())
    share = 100 * trigonal["n_patterns"].sum() / train["n_patterns"].sum()
    assert cell(cells, "Trigonal", "Percentage") == f"{share:.2f}"


def test_outputs_are_the_same_bytes_whatever_the_order_of_rows(data, tmp_path):
    dataset, paths = data
    shuffled = tmp_path / "shuffled"
    shuffled.mkdir()
    for path in (dataset, *paths.values()):
        pd.read_parquet(path).sample(frac=1, random_state=1).to_parquet(
            shuffled / path.name, index=False
        )
    again = shuffled / "dataset.parquet", {model: shuffled / p.name for model, p in paths.items()}
    for k, inputs in enumerate((data, data, again)):
        folder = tmp_path / str(k)
        for number in OWN_TABLES:
            table(number, inputs, folder)
        for number in OWN_FIGURES:
            figure(number, inputs, folder)
    names = [path.name for path in (tmp_path / "0").glob("*.*") if not path.match("*.run.json")]
    assert len(names) == 2 * len(OWN_TABLES) + 3 * len(OWN_FIGURES)
    for name in names:
        first = (tmp_path / "0" / name).read_bytes()
        assert first == (tmp_path / "1" / name).read_bytes(), name
        assert first == (tmp_path / "2" / name).read_bytes(), name


def test_confidence_of_votes_is_the_mean_probability(data):
    dataset, paths = data
    single = read_predictions(paths["pe_ag_gmoe"], read_dataset(dataset), "crystal_system")
    voted = single.aggregated(np.ones(len(single.truth), dtype=bool))
    predictions = pd.read_parquet(paths["pe_ag_gmoe"])
    means = predictions.groupby("material_id")[PROBABILITIES].mean()
    expected = means.to_numpy()[np.arange(len(means)), voted.predicted]
    assert list(single.names) == list(means.index)
    np.testing.assert_allclose(voted.confidence, expected)
    best = predictions[PROBABILITIES].max(axis=1)
    np.testing.assert_allclose(np.sort(single.confidence), np.sort(best))


def test_figure_1_holds_the_confusion_of_the_models_that_ran(data, tmp_path):
    points = figure("1", data, tmp_path, {"pe_ag_gmoe": data[1]["pe_ag_gmoe"]})
    assert set(points["model"]) == {"PE-AG-GMoE"}
    predictions = pd.read_parquet(data[1]["pe_ag_gmoe"])
    single = points[points["panel"] == "a"].set_index(["true", "predicted"])
    expected = predictions.groupby(["crystal_system", "predicted_crystal_system"]).size()
    for (true, predicted), count in expected.items():
        assert single["count"][true.capitalize(), predicted.capitalize()] == count
    assert single["count"].sum() == len(predictions)
    for panel, n in (("b", predictions["material_id"].nunique()), ("c", len(predictions))):
        assert points.loc[points["panel"] == panel, "count"].sum() == n
    sums = points[points["panel"].isin(["a", "b"])].groupby(["panel", "true"])["percent"].sum()
    np.testing.assert_allclose(sums, 100, atol=0.05)
    svg = (tmp_path / "figure_1.svg").read_text("utf-8")
    assert "Not run: RF, MVOF-ML and Ours." in svg
    assert "Orthorhombic</text>" in svg  # text that can be read, not outlines
    assert "<dc:date>" not in svg


def test_opinions_are_fused_and_others_vote(data, tmp_path):
    points = figure("1", data, tmp_path)
    points = points[(points["model"] == "MVOF-ML") & (points["panel"] == "b")]
    expected = fused_by_loop(data[1]["mvof_ml"], CONTEXT["aggregate"])
    for (true, predicted), count in expected.groupby(["true", "predicted"]).size().items():
        chosen = points[points["true"].eq(true.capitalize())
                        & points["predicted"].eq(predicted.capitalize())]  # fmt: skip
        assert chosen["count"].tolist() == [count]
    assert points["count"].sum() == len(expected)
    assert "Dempster rule, for MVOF-ML" in (tmp_path / "figure_1.svg").read_text("utf-8")
    figure("1", data, tmp_path, {"ours": data[1]["ours"]})
    assert "Dempster" not in (tmp_path / "figure_1.svg").read_text("utf-8")
    single = read_predictions(data[1]["mvof_ml"], read_dataset(data[0]), "crystal_system")
    fused = single.aggregated(single.ranks(1, CONTEXT["seed"])[0] < CONTEXT["aggregate"])
    np.testing.assert_allclose(fused.confidence, expected["confidence"])


def test_zone_axes_figure_equals_an_independent_computation(data, tmp_path):
    points = figure("zone_axes", data, tmp_path).set_index(["model", "target", "zone_axes"])
    assert set(points.index.get_level_values("zone_axes")) == set(range(1, 21))
    told = set(zip(*(points.index.get_level_values(k) for k in (0, 1)), strict=True))
    assert told == {
        *((name, "crystal_system") for name in (*MODELS.values(), "MVOF-ML")),
        *((name, "space_group") for name in MODELS.values()),
    }
    for name, accuracies in {
        ("RF", "crystal_system"): [
            votes_by_loop(data[1]["random_forest"], "crystal_system", 4, k)["right"].mean()
            for k in range(10)
        ],
        ("Ours", "space_group"): [
            votes_by_loop(data[1]["ours"], "space_group", 4, k)["right"].mean() for k in range(10)
        ],
        ("MVOF-ML", "crystal_system"): [
            (fused["true"] == fused["predicted"]).mean()
            for fused in (fused_by_loop(data[1]["mvof_ml"], 4, k) for k in range(10))
        ],
    }.items():
        found = points.loc[(*name, 4)]
        assert found["accuracy"] == pytest.approx(100 * np.mean(accuracies), abs=0.006)
        assert found["lowest"] == pytest.approx(100 * np.min(accuracies), abs=0.006)
        assert found["highest"] == pytest.approx(100 * np.max(accuracies), abs=0.006)
        assert found["lowest"] < found["highest"]


def test_zone_axes_figure_ends_with_the_patterns_that_there_are(data, tmp_path):
    predictions = pd.read_parquet(data[1]["mvof_ml"])
    few = predictions.groupby("material_id").head(3)
    few.to_parquet(tmp_path / "few.parquet", index=False)
    points = figure("zone_axes", data, tmp_path, {"mvof_ml": tmp_path / "few.parquet"})
    assert points["zone_axes"].tolist() == [1, 2, 3]
    assert set(points["target"]) == {"crystal_system"}
    last = points.iloc[-1]
    assert last["lowest"] == last["accuracy"] == last["highest"]  # all patterns in every draw
    assert last["materials"] == predictions["material_id"].nunique()


def test_calibration_figure_holds_bins_and_curves(data, tmp_path):
    points = figure("calibration", data, tmp_path)
    for model, path in data[1].items():
        predictions = pd.read_parquet(path)
        name = {**MODELS, "mvof_ml": "MVOF-ML"}[model]
        mine = points[points["model"] == name]
        bins = mine[mine["panel"] == "a"]
        assert len(bins) == 15
        assert bins["patterns"].sum() == len(predictions)
        curve = mine[mine["panel"] == "b"]
        assert 50 < len(curve) <= 200
        right = predictions["crystal_system"] == predictions["predicted_crystal_system"]
        assert curve["coverage"].iloc[-1] == 100
        assert curve["accuracy"].iloc[-1] == pytest.approx(100 * right.mean(), abs=0.006)
        half = curve.iloc[(curve["coverage"] - 50).abs().argmin()]
        answered = predictions[PROBABILITIES].max(axis=1) >= half["threshold"] / 100
        assert half["coverage"] == pytest.approx(100 * answered.mean(), abs=0.1)
        assert half["accuracy"] == pytest.approx(100 * right[answered].mean(), abs=0.1)


def in_two_parts(data, folder):
    """Make a third of the test materials ones of new prototypes; return also each part's files."""
    dataset = pd.read_parquet(data[0])
    test = dataset.index[dataset["split"] == "test"]
    dataset.loc[test[::3], "split"] = "new_prototype"
    dataset.to_parquet(folder / "dataset.parquet", index=False)
    parts = {}
    for split in ("test", "new_prototype"):
        (folder / split).mkdir()
        chosen = dataset.loc[dataset["split"] == split, "material_id"]
        parts[split] = {model: folder / split / path.name for model, path in data[1].items()}
        for model, path in parts[split].items():
            said = pd.read_parquet(data[1][model])
            said[said["material_id"].isin(chosen)].to_parquet(path, index=False)
    return (folder / "dataset.parquet", data[1]), parts


def test_new_prototypes_are_in_no_other_table_or_figure(data, tmp_path):
    (dataset, both), parts = in_two_parts(data, tmp_path)
    ours = {"ours": both["ours"]}
    for name in OWN_TABLES:
        if name != "prototypes":
            known = table(name, (dataset, parts["test"]), tmp_path)
            pd.testing.assert_frame_equal(known, table(name, (dataset, both), tmp_path))
    for name in ("1", "zone_axes", "calibration"):
        known = figure(name, (dataset, {"ours": parts["test"]["ours"]}), tmp_path)
        pd.testing.assert_frame_equal(known, figure(name, (dataset, ours), tmp_path))


def test_table_of_prototypes_equals_an_independent_computation(data, tmp_path):
    inputs, parts = in_two_parts(data, tmp_path)
    cells = table("prototypes", inputs, tmp_path)
    assert len(cells) == 4 * 6
    for split, part in (("test", "known prototypes"), ("new_prototype", "new prototypes")):
        for model, name in MODELS.items():
            said = pd.read_parquet(parts[split][model])
            voted = votes_by_loop(parts[split][model], "crystal_system")
            for target, column in (("crystal_system", "Crystal system"),
                                   ("space_group", "Space group")):  # fmt: skip
                right = said[f"predicted_{target}"] == said[target]
                assert cell(cells, name, f"{column}, {part}") == f"{100 * right.mean():.1f}"
                assert cell(cells, name, f"{column}, {part}", "n_test") == str(len(said))
            together = f"Crystal system (Agg.), {part}"
            assert cell(cells, name, together) == f"{100 * voted['right'].mean():.1f}"
            assert cell(cells, name, together, "n_test") == str(len(voted))
            assert cell(cells, name, together, "items") == "materials"
            types = SAME_TYPES if split == "test" else OTHER_TYPES
            assert cell(cells, name, together, "stand_in") == types
        assert cell(cells, "MVOF-ML", f"Space group, {part}") == DASH
    words = (tmp_path / "table_prototypes.md").read_text("utf-8")
    assert "no materials of new prototypes" not in words
    assert "splits by prototype" not in words


def test_table_of_prototypes_says_what_it_cannot_show(data, tmp_path):
    predictions = {"ours": data[1]["ours"]}
    context = CONTEXT | {"split_by": "prototype"}
    cells = table("prototypes", data, tmp_path, predictions, context)
    new = cells[cells["column"].str.endswith("new prototypes")]
    assert set(new.loc[new["row"] == "Ours", "value"]) == {DASH}
    assert set(new.loc[new["row"] != "Ours", "value"]) == {"not run"}
    assert set(new["n_test"]) == {"0"}
    assert DASH not in set(cells.loc[~cells["column"].isin(new["column"]), "value"])
    words = (tmp_path / "table_prototypes.md").read_text("utf-8")
    assert "This run has no materials of new prototypes" in words
    assert "those of the test split are new as well" in words
    assert OTHER_TYPES in words
    assert SAME_TYPES not in words


def test_table_of_ablations_follows_each_network_by_its_ablations(data, tmp_path):
    predictions = data[1] | {"short": data[1]["pe_ag_gmoe"], "narrow": data[1]["mvof_ml"]}
    cells = table("ablations", data, tmp_path, predictions)
    rows = ["MVOF-ML", "MVOF-ML, narrow", "Ours", "Ours, short"]
    assert list(cells["row"].unique()) == rows
    third, fourth = (table(number, data, tmp_path) for number in ("3", "4"))
    scores = table("calibration", data, tmp_path)
    whole = "All test items"
    for row, name in zip(rows, ("MVOF-ML", "MVOF-ML", "Ours", "PE-AG-GMoE"), strict=True):
        assert cell(cells, row, "Crystal system") == cell(third, whole, name)
        assert cell(cells, row, "Crystal system (Agg.)") == cell(third, whole, f"{name} (Agg.)")
        assert cell(cells, row, "ECE") == cell(scores, name, "ECE")
        tells = name != "MVOF-ML"
        expected = cell(fourth, whole, name) if tells else DASH
        assert cell(cells, row, "Space group") == expected
        stand_in = SAME_TYPES if tells else f"{SAME_TYPES}; {REBUILT}"
        assert cell(cells, row, "ECE", "stand_in") == stand_in
        assert cell(cells, row, "ECE", "unit") == "fraction"
    words = (tmp_path / "table_ablations.md").read_text("utf-8")
    assert (
        "MVOF-ML, narrow: network.width 8; Ours, short: training.epochs 1, training.rotate True"
        in words
    )
    assert "for MVOF-ML)" in words


def test_table_of_ablations_names_those_that_were_not_run(data, tmp_path):
    cells = table("ablations", data, tmp_path, {"ours": data[1]["ours"]})
    assert set(cells.loc[cells["row"] != "Ours", "value"]) == {"not run"}
    assert "not run" not in set(cells.loc[cells["row"] == "Ours", "value"])
    words = (tmp_path / "table_ablations.md").read_text("utf-8")
    assert "Not run: MVOF-ML; MVOF-ML, narrow; Ours, short." in words


def test_figures_5_to_8_draw_the_blocks_of_the_network(data, tmp_path):
    names = {"5": ["encoder", "graph", "graphormer"], "6": ["encoder.0"], "7": ["graph.a"],
             "8": ["graphormer.layers.0"]}  # fmt: skip
    for name, expected in names.items():
        assert figure(name, data, tmp_path, {})["name"].tolist() == expected
    assert "architecture.json" in (tmp_path / "figure_8.run.json").read_text("utf-8")


def test_figures_3_and_4_count_patterns(data, tmp_path):
    shares = figure("3", data, tmp_path, {}).set_index("crystal_system")
    train = pd.read_parquet(data[0]).query("split == 'train'")
    counts = train.groupby("crystal_system")["n_patterns"].sum()
    assert shares["patterns"]["Cubic"] == counts["cubic"]
    assert shares["percent"]["Cubic"] == pytest.approx(
        100 * counts["cubic"] / counts.sum(), abs=0.01
    )
    assert shares["published_percent"]["Orthorhombic"] == 25.24
    bars = figure("4", data, tmp_path, {})
    test = pd.read_parquet(data[0]).query("split == 'test'")
    expected = test.groupby("space_group")["n_patterns"].sum()
    assert bars.set_index("space_group")["patterns"].to_dict() == expected.to_dict()
    for _, part in bars.groupby("crystal_system"):
        assert part["patterns"].is_monotonic_decreasing
    assert list(bars["crystal_system"].unique())[:2] == ["Cubic", "Hexagonal"]


def test_figure_4_shows_every_space_group_at_full_size(tmp_path):
    system = [
        next(k for k, (_, last) in enumerate(SPACE_GROUPS) if g <= last) for g in range(1, 231)
    ]
    pd.DataFrame(
        {
            "material_id": [f"m{g}" for g in range(1, 231)],
            "split": "test",
            "crystal_system": np.array(CRYSTAL_SYSTEMS)[system],
            "space_group": range(1, 231),
            "n_patterns": range(1, 231),
        }
    ).to_parquet(tmp_path / "dataset.parquet", index=False)
    figure("4", (tmp_path / "dataset.parquet", {}), tmp_path)
    svg = (tmp_path / "figure_4.svg").read_text("utf-8")
    assert all(f">{number}</text>" in svg for number in range(1, 231))


def test_systems_without_test_items_are_left_out_of_the_means(data, tmp_path):
    dataset = pd.read_parquet(data[0])
    chosen = dataset[dataset["crystal_system"].isin(["cubic", "triclinic"])]
    chosen.to_parquet(tmp_path / "dataset.parquet", index=False)
    predictions = pd.read_parquet(data[1]["random_forest"])
    predictions = predictions[predictions["material_id"].isin(chosen["material_id"])]
    predictions.to_parquet(tmp_path / "random_forest.parquet", index=False)
    inputs = tmp_path / "dataset.parquet", {"random_forest": tmp_path / "random_forest.parquet"}
    cells = table("3", inputs, tmp_path)
    cubic, triclinic = (float(cell(cells, row, "RF")) for row in ("Cubic", "Triclinic"))
    assert cell(cells, "Hexagonal", "RF") == DASH
    mean = float(cell(cells, "Mean of systems", "RF"))
    assert mean == pytest.approx((cubic + triclinic) / 2, abs=0.11)
    assert float(cell(cells, "Mean without triclinic", "RF")) == cubic
    for number in OWN_FIGURES:
        figure(number, inputs, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="probability_cubic"), "probability_cubic"),
        (lambda t: t.assign(material_id="toy-unknown"), "not in the test split"),
        (lambda t: t.assign(predicted_crystal_system="cubik"), "'cubik'"),
        (lambda t: t.assign(probability_cubic=np.nan), "rows without probability_cubic"),
        (lambda t: t.iloc[:0], "holds no predictions for the split test"),
    ],
)
def test_bad_predictions_are_named(change, message, data, tmp_path):
    path = tmp_path / "bad.parquet"
    change(pd.read_parquet(data[1]["random_forest"])).to_parquet(path, index=False)
    with pytest.raises(InputError, match=message):
        table("3", data, tmp_path, {"random_forest": path})
    assert not (tmp_path / "table_3.csv").exists()


def test_other_bad_inputs_are_named(data, tmp_path):
    path = tmp_path / "bad.parquet"
    predictions = pd.read_parquet(data[1]["random_forest"])
    predictions.assign(predicted_space_group=231).to_parquet(path, index=False)
    with pytest.raises(InputError, match="space group 231"):
        table("4", data, tmp_path, {"random_forest": path})
    trained = pd.read_parquet(data[0]).query("split == 'train'")["material_id"].iloc[0]
    predictions.assign(material_id=trained).to_parquet(path, index=False)
    with pytest.raises(
        InputError, match=f"not in the test split of the dataset, such as {trained}"
    ):
        table("1", data, tmp_path, {"random_forest": path})
    path.write_bytes(b"not Parquet")
    with pytest.raises(InputError, match=r"bad\.parquet"):
        table("5", (path, {}), tmp_path)
    with pytest.raises(InputError, match=r"no table 7 .* 1, 2, 3, 4, 5, 6, "):
        table("7", data, tmp_path)
    for name in ("1", "zone_axes", "calibration"):
        with pytest.raises(InputError, match="no model ran"):
            figure(name, data, tmp_path, {})
    with pytest.raises(InputError, match="PE-AG-GMoE, which was not run"):
        figure("5", data, tmp_path, architecture=None)
    for bad in ("text", [1], HPARAMS | {"network": {}}):
        with pytest.raises(InputError, match=r"hparams\.json does not hold"):
            table("6", data, tmp_path, hparams=bad)
