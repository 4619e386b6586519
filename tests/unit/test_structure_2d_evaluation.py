"""Tables and figures of the study of two-dimensional crystals from hand-made evaluations."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from pymatgen.symmetry.groups import PointGroup
from safetensors.torch import save_file

from diffractory.evaluation.ranking import bootstrap
from diffractory.evaluation.structure_2d import MODELS, read_example
from diffractory.evaluation.structure_2d_examples import (
    collect_retrieval_examples,
    summarize_layers,
)
from diffractory.evaluation.structure_2d_figures import ARCHITECTURE, EXAMPLES, FIGURES, make_figure
from diffractory.evaluation.structure_2d_point_groups import GENERATORS, operations, similarity
from diffractory.evaluation.structure_2d_tables import TABLES, make_table
from diffractory.models.dd2d import DD2D
from diffractory.models.invariant_2d import Invariant2D
from diffractory.simulate.crystal import Crystal
from diffractory.store import InputError, Patterns, write_patterns
from diffractory.training.crystals import layers_of
from diffractory.training.stage import follow

CONTEXT = {
    "scale": "demo",
    "dataset": "layers",
    "source": "layers",
    "seed": 7,
    "perturbed": {"method": "dynamics", "calculator": "chgnet"},
}
ABLATIONS = {
    "shallow": {"n_layers": 1, "n_heads": 4, "width": 128},
    "dd2d": {"n_layers": 4, "n_heads": 4, "width": 128},
    "few_heads": {"n_layers": 4, "n_heads": 2, "width": 128},
}
NETWORK = {"width": 32, "n_layers": 2, "n_heads": 4, "max_length": 60, "q_max": 1.0, "q_step": 0.02}

RANKS = [1, 1, 2, 3, 4, 6, 8, 1]
"""Of the eight test crystals t0 to t7: 3 of 8 are first, 5 among three, 6 among five."""

GROUPS = ["mm2", "mm2", "2/m", "2/m", "-6m2", "6/mmm", "6/mmm", "6/mmm"]
FAMILY = ["rectangular", "rectangular", "oblique", "oblique"] + ["hexagonal"] * 4


def crystal(k):
    """Return a layer of MX2, or, for the last, one of twice two."""
    a = 3 + 0.1 * k
    cell = np.array([[a, 0, 0], [-a / 2, a * np.sqrt(3) / 2, 0], [0, 0, 18.0]])
    positions = np.array([[0, 0, 0.5], [1 / 3, 2 / 3, 0.58], [2 / 3, 1 / 3, 0.42]])
    numbers = np.array([22 + k, 16, 16])
    if k == 7:
        cell[:2] *= 2
        shifts = np.array([[i, j, 0] for i in (0, 0.5) for j in (0, 0.5)])
        positions = (positions * [0.5, 0.5, 1] + shifts[:, None]).reshape(-1, 3)
        numbers = np.tile(numbers, 4)
    return Crystal(cell, positions, numbers)


def layers_table():
    """Return eight test layers, and 24 of the training, of which the first 8 are relaxed."""
    rows = [
        (f"t{k}", f"M{k}S2", GROUPS[k], "monoclinic", FAMILY[k], "test", crystal(k).to_json())
        for k in range(8)
    ]
    rows += [(f"x{k}", "MS2", "1", "triclinic", FAMILY[k % 8], "train", crystal(k % 7).to_json())
             for k in range(24)]  # fmt: skip
    columns = ["material_id", "formula", "point_group", "crystal_system", "family", "split",
               "structure"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns).assign(relaxed=np.arange(32) < 5)


def answers(ranks, condition="as_simulated", gallery="test", size=8, checked=None):
    """Return the form of `evaluate_retrieval` for t0 to t7: others stand in order of their names.

    With five candidates, of which the k-th has the cosine 1 - k / 10 and the R-factor k / 5.
    """
    lists = []
    for k, rank in enumerate(ranks):
        order = [f"t{other}" for other in range(8) if other != k]
        lists.append([*order[: rank - 1], f"t{k}", *order[rank - 1 :]][:5])
    table = pd.DataFrame({"condition": condition, "gallery": gallery, "gallery_size": size,
                          "material_id": [f"t{k}" for k in range(8)], "rank": ranks,
                          "candidates": lists})  # fmt: skip
    return table.assign(
        scores=[np.array([0.9, 0.8, 0.7, 0.6, 0.5], dtype=np.float32)] * 8,
        r_factors=[np.array([0.0, 0.2, 0.4, np.inf, 0.8])] * 8,
        checked_rank=ranks if checked is None else checked,
        twins=[1, 0, 0, 0, 0, 0, 0, 2],
        formula="MS2",
        point_group=GROUPS,
        crystal_system="monoclinic",
        family=FAMILY,
    )


def predicted():
    """Return the answers of a model under three conditions, two of them from two galleries."""
    hard = [8, 7, 6, 5, 4, 3, 2, 1]
    return pd.concat(
        [
            answers(RANKS, checked=[1] * 6 + [8, 1]),
            answers(hard, "rotated"),
            answers(hard, "experimental", checked=[8, 7, 6, 1, 1, 1, 1, 1]),
            answers([9, 1, 1, 11, 12, 13, 14, 15], gallery="distractors", size=80),
            answers([80] * 8, "experimental", "distractors", size=80),
        ],
        ignore_index=True,
    )


def write_network(folder, network, name):
    settings = NETWORK if name == "dd2d" else {"width": 32, "q_max": 1.0}
    folder.mkdir()
    save_file(network.state_dict(), folder / "model.safetensors")
    hparams = {"model": name, "network": settings}
    (folder / "hparams.json").write_text(json.dumps(hparams), "utf-8")


def spots_of(k):
    """Return q_x, q_y and intensity of five spots that only crystal k has."""
    q = np.array([[0.3, 0], [-0.3, 0], [0, 0.4], [0, -0.4], [0.5, 0.5]]) + 0.01 * k
    return np.column_stack([q, [1.0, 1.0, 0.1, 0.1, 0.01]])


def synthetic(folder):
    """Write the inputs of all tables and figures; return the folder."""
    table = layers_table()
    table.to_parquet(folder / "layers.parquet", index=False)
    spots = [spots_of(k) for k in range(8)]
    flat = np.concatenate(spots)
    patterns = Patterns(
        offsets=5 * np.arange(9),
        qx=flat[:, 0].astype(np.float32),
        qy=flat[:, 1].astype(np.float32),
        intensity=flat[:, 2].astype(np.float32),
        hkl=np.zeros((len(flat), 3), dtype=np.int16),
        material_id=np.array([f"t{k}" for k in range(8)], dtype=object),
        zone_axis=np.tile(np.array([0, 0, 1], dtype=np.int16), (8, 1)),
        orientation=np.tile(np.eye(3), (8, 1, 1)),
        thickness=np.full(8, 3, dtype=np.float32),
        energy=np.full(8, 3e4, dtype=np.float32),
    )
    write_patterns(folder / "patterns", [patterns])
    torch.manual_seed(1)
    network = DD2D(**NETWORK).eval()
    write_network(folder / "dd2d", network, "dd2d")
    write_network(folder / "invariant", Invariant2D(width=32, q_max=1.0), "invariant")
    batch = layers_of(table).batch(np.array([0]), 1.0)
    example = torch.from_numpy(spots[0].astype(np.float32))[None]
    blocks = follow(network, batch, example, torch.ones(1, 5, dtype=torch.bool))
    (folder / "architecture.json").write_text(json.dumps(blocks), "utf-8")
    for model in (*MODELS, "shallow", "few_heads"):
        predicted().to_parquet(folder / f"{model}.parquet", index=False)
    summarize_layers(
        folder / "layers.parquet", folder / "dataset.parquet", folder / "dataset.run.json", 7
    )
    collect(folder, folder / "examples.parquet")
    return folder


def collect(data, examples, **changes):
    names = {"model": "dd2d", "layers": "layers.parquet", "patterns": "patterns",
             "predictions": "dd2d.parquet"}  # fmt: skip
    given = {name: data / file for name, file in names.items()} | changes
    collect_retrieval_examples(
        examples=examples, run=examples.with_suffix(".run.json"), seed=7, **given
    )
    return pd.read_parquet(examples)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return synthetic(tmp_path_factory.mktemp("structure_2d"))


def table(name, data, folder, models=(*MODELS, *ABLATIONS), predictions=None, **changes):
    given = {model: data / f"{model}.parquet" for model in models}
    context = CONTEXT | ({"ablations": ABLATIONS} if name == "ablations" else {}) | changes
    paths = [folder / f"table_{name}.{suffix}" for suffix in ("csv", "md", "run.json")]
    make_table(name, data / "dataset.parquet", predictions or given, context, *paths)
    return pd.read_csv(paths[0], dtype=str, keep_default_na=False)


def figure(name, data, folder, context=CONTEXT, **changes):
    given = {
        "predictions": {model: data / f"{model}.parquet" for model in MODELS},
        "examples": data / "examples.parquet" if name in EXAMPLES else None,
        "architecture": data / "architecture.json" if name in ARCHITECTURE else None,
    } | changes
    svg, png, csv, run = (folder / f"f{name}.{suffix}" for suffix in ("svg", "png", "csv", "json"))
    make_figure(name, context=context, svg=svg, png=png, csv=csv, run=run, **given)
    return pd.read_csv(csv)


def cell(cells, row, column, what="value"):
    found = cells[(cells["row"] == row) & (cells["column"] == column)]
    assert len(found) == 1
    return found[what].iloc[0]


def notes(folder, name):
    return (folder / f"table_{name}.md").read_text("utf-8")


def caption(folder, name):
    return " ".join((folder / f"f{name}.svg").read_text("utf-8").split())


def test_table_1_by_hand(data, tmp_path):
    cells = table("1", data, tmp_path)
    row = "DD2D, unperturbed"
    expected = {"Top-1": "37.5", "Top-3": "62.5", "Top-5": "75.0", "Top-10": "100.0",
                "MRR": f"{(3 + 1 / 2 + 1 / 3 + 1 / 4 + 1 / 6 + 1 / 8) / 8:.3f}",
                "Gallery": "8", "With a twin": "25.0"}  # fmt: skip
    assert {column: cell(cells, row, column) for column in expected} == expected
    chance = {"Top-1": "12.5", "Top-3": "37.5", "Top-5": "62.5", "Top-10": "100.0", "Gallery": "8",
              "MRR": f"{sum(1 / k for k in range(1, 9)) / 8:.3f}"}  # fmt: skip
    assert {column: cell(cells, "Chance among 8", column) for column in chance} == chance
    low, high = bootstrap(np.array([rank <= 3 for rank in RANKS], dtype=float), 7)
    printed = f"{100 * low:.1f}\N{EN DASH}{100 * high:.1f}"
    assert cell(cells, row, "Top-3", "interval") == printed
    assert low < 0.625 < high
    assert cell(cells, row, "Top-1", "n_train") == "24"
    assert cell(cells, row, "Top-1", "n_test") == "8"
    assert "5 of the 8 test crystals were relaxed with CHGNet" in notes(tmp_path, "1")


def test_published_accuracies_are_those_of_the_paper(data, tmp_path):
    cells = table("1", data, tmp_path)
    published = {
        "DD2D, unperturbed": ["62.0", "92.0", "95.0", "99.0"],
        "DD2D, perturbed": ["55.0", "83.0", "94.0", "99.0"],
        "Invariant, unperturbed": [""] * 4,
        "Chance among 8": [""] * 4,
    }
    for row, values in published.items():
        assert [cell(cells, row, f"Top-{k}", "published") for k in (1, 3, 5, 10)] == values
    assert "Published: 796 test crystals of 7,951; chance among 796 is 0.1, 0.4, 0.6, 1.3 %" in (
        notes(tmp_path, "1")
    )
    below = "below in Top-1 by 24.5, Top-3 by 29.5, Top-5 by 20.0;"
    assert f"DD2D, unperturbed: {below}" in notes(tmp_path, "1")
    assert f"Invariant, unperturbed: {below}" in notes(tmp_path, "1")
    assert "DD2D, perturbed: below in Top-1 by 17.5, Top-3 by 20.5, Top-5 by 19.0;" in (
        notes(tmp_path, "1")
    )


def test_models_above_the_published(data, tmp_path):
    path = tmp_path / "best.parquet"
    answers([1] * 8).to_parquet(path)
    cells = table("1", data, tmp_path, predictions={"dd2d": path})
    assert cell(cells, "DD2D, unperturbed", "MRR") == "1.000"
    text = notes(tmp_path, "1")
    assert "in points: DD2D, unperturbed: none below." in text
    assert "Not run: DD2D, perturbed; Invariant, unperturbed; Invariant, perturbed." in text


def test_conditions_and_the_check(data, tmp_path):
    cells = table("conditions", data, tmp_path)
    rows = cells["row"].unique().tolist()
    assert rows[:4] == [
        "DD2D, unperturbed, as simulated", "DD2D, unperturbed, rotated",
        "DD2D, unperturbed, experimental", "DD2D, perturbed, as simulated",
    ]  # fmt: skip
    assert rows[12:] == ["Chance among 8"]
    assert cell(cells, rows[0], "Top-1, checked") == "87.5"
    assert cell(cells, rows[0], "Top-1") == "37.5"
    assert cell(cells, rows[1], "Top-1") == cell(cells, rows[1], "Top-1, checked") == "12.5"
    assert cell(cells, rows[2], "Top-1, checked") == "62.5"
    assert "keeps its rank" in notes(tmp_path, "conditions")


def test_galleries_have_chances_of_their_own(data, tmp_path):
    cells = table("galleries", data, tmp_path)
    row = "DD2D, unperturbed, as simulated, distractors"
    assert cell(cells, row, "Top-1") == "25.0"
    assert cell(cells, row, "Top-10") == "37.5"
    assert cell(cells, row, "Gallery") == "80"
    assert cell(cells, "DD2D, unperturbed, experimental, distractors", "Top-10") == "0.0"
    assert cell(cells, "DD2D, unperturbed, experimental, test", "Top-1") == "12.5"
    assert cell(cells, "Chance among 80", "Top-10") == cell(cells, "Chance among 8", "Top-1")
    assert not cells["row"].str.contains("rotated").any()


def test_families_by_hand(data, tmp_path):
    cells = table("families", data, tmp_path)
    found = {family: cell(cells, f"DD2D, unperturbed, {family}", "Top-1")
             for family in ("oblique", "rectangular", "hexagonal")}  # fmt: skip
    assert found == {"oblique": "0.0", "rectangular": "100.0", "hexagonal": "25.0"}
    assert cell(cells, "DD2D, unperturbed, oblique", "MRR") == f"{(1 / 2 + 1 / 3) / 2:.3f}"
    assert cell(cells, "DD2D, unperturbed, hexagonal", "Top-1", "n_test") == "4"
    assert cell(cells, "DD2D, unperturbed, hexagonal", "Top-1", "n_train") == "12"
    assert not cells["row"].str.contains("square").any()


def test_ablations_from_small_to_large(data, tmp_path):
    cells = table("ablations", data, tmp_path, ("dd2d", "shallow"))
    rows = cells["row"].unique().tolist()
    assert rows == [
        "layers: 1, heads: 4, width: 128", "layers: 4, heads: 2, width: 128",
        "layers: 4, heads: 4, width: 128", "Chance among 8",
    ]  # fmt: skip
    assert cell(cells, rows[0], "Top-5") == "75.0"
    assert cell(cells, rows[1], "Top-5") == "not run"
    assert set(cells["published"]) == {""}
    with pytest.raises(InputError, match="no ablations to show"):
        table("ablations", data, tmp_path, ablations={})


@pytest.mark.parametrize("name", TABLES)
def test_tables_without_models(name, data, tmp_path):
    cells = table(name, data, tmp_path, ())
    ran = cells["row"].str.startswith("Chance")
    assert set(cells.loc[~ran, "value"]) == {"not run"}
    assert cells.loc[ran, "row"].unique().tolist() == ["Chance among 8"]
    assert set(cells["interval"]) == {""}
    assert "Not run: " in notes(tmp_path, name)


def test_stand_ins_are_marked(data, tmp_path):
    crystals = "embedded 2D prototypes for C2DB"
    motion = "molecular dynamics with CHGNet for that with VASP"
    cells = table("1", data, tmp_path)
    assert cell(cells, "DD2D, unperturbed", "Top-1", "stand_in") == crystals
    assert cell(cells, "DD2D, perturbed", "Top-1", "stand_in") == f"{crystals}; {motion}"
    assert f"Stand-ins: {crystals}; {motion}." in notes(tmp_path, "1")
    gaussian = {"method": "gaussian", "calculator": "chgnet"}
    cells = table("1", data, tmp_path, source="c2db", perturbed=gaussian)
    assert cell(cells, "DD2D, unperturbed", "Top-1", "stand_in") == ""
    assert cell(cells, "DD2D, perturbed", "Top-1", "stand_in") == (
        "Gaussian displacements for ab-initio molecular dynamics"
    )
    as_published = {"method": "dynamics", "calculator": "vasp"}
    cells = table("1", data, tmp_path, source="c2db", perturbed=as_published)
    assert set(cells["stand_in"]) == {""}
    figure("retrieval", data, tmp_path, CONTEXT | {"source": "c2db", "perturbed": as_published})
    assert "Stand-in" not in caption(tmp_path, "retrieval")


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_the_same_again_and_say_their_data(name, data, tmp_path):
    folders = tmp_path / "first", tmp_path / "second"
    for folder in folders:
        shown = figure(name, data, folder)
        assert len(shown) > 1
        assert set(shown["scale"]) == {"demo"}
    for suffix in ("svg", "png", "csv"):
        one, two = (folder / f"f{name}.{suffix}" for folder in folders)
        assert one.read_bytes() == two.read_bytes()
    record = json.loads((folders[0] / f"f{name}.json").read_text("utf-8"))
    assert record["config"]["figure"] == name
    stand_ins = [] if name == "1" else ["embedded 2D prototypes for C2DB"]
    if name == "retrieval":
        stand_ins.append("molecular dynamics with CHGNet for that with VASP")
    assert all(f"Stand-in: {text}." in caption(folders[0], name) for text in stand_ins)


def test_figure_1_has_both_towers(data, tmp_path):
    shown = figure("1", data, tmp_path).set_index("name")
    times = "\N{MULTIPLICATION SIGN}"
    # of start and end token, and of the class token: those that are read
    for tower, tokens in (("geometry", 2), ("texture", 1)):
        transformer = shown.loc[f"{tower}.transformer"]
        assert transformer["inside"] == f"2 {times} Layer, LayerNorm"
        assert transformer["outputs"] == f"{tokens} {times} 32"
        assert shown.loc[f"{tower}.project", "outputs"] == "32"
    network = DD2D(**NETWORK)
    count = sum(p.numel() for p in network.geometry.transformer.parameters())
    assert shown.loc["geometry.transformer", "parameters"] == count
    one = tmp_path / "architecture.json"
    blocks = json.loads((data / "architecture.json").read_text("utf-8"))
    one.write_text(json.dumps([b for b in blocks if b["name"].startswith("geometry")]), "utf-8")
    with pytest.raises(InputError, match="two towers"):
        figure("1", data, tmp_path, architecture=one)


def test_figure_2_has_the_attention_of_the_network(data, tmp_path):
    shown = figure("2", data, tmp_path)
    tokens = shown["token"].unique().tolist()
    assert tokens[:8] == ["start", "a", "b", "c", "\u03b1", "\u03b2", "\u03b3", "x1"]
    assert tokens[-4:] == ["S1", "S2", "Ti3", "end"]
    assert len(shown) == 2 * 4 * 20 * 20
    sums = shown.groupby(["layer", "head", "token"])["weight_percent"].sum()
    np.testing.assert_allclose(sums, 100, atol=0.2)
    start = shown[shown["token"] == "start"].groupby("attends_to")["weight_percent"].max()
    assert (start[["start", "a", "b"]] > 0).all()
    assert (start[["x1", "S1", "end"]] == 0).all()
    with torch.inference_mode():
        torch.manual_seed(1)
        batch = layers_of(layers_table()).batch(np.array([0]), 1.0)
        weights = DD2D(**NETWORK).eval().attention(batch)
    last = shown[(shown["layer"] == "last") & (shown["head"] == 3) & (shown["token"] == "a")]
    np.testing.assert_allclose(last["weight_percent"], 100 * weights[1, 2, 1], atol=0.006)


def test_long_crystals_have_labels_of_groups(data, tmp_path):
    path = tmp_path / "only_t7.parquet"
    everything = predicted()
    everything[everything["material_id"] == "t7"].to_parquet(path)
    collect(data, tmp_path / "examples.parquet", predictions=path)
    shown = figure("2", data, tmp_path, examples=tmp_path / "examples.parquet")
    assert shown["token"].nunique() == 8 + 4 * 12
    text = caption(tmp_path, "2")
    assert ">positions<" in text
    assert ">x1<" not in text


def test_operations_are_those_of_pymatgen():
    hexagonal = np.array([[1, -0.5, 0], [0, np.sqrt(3) / 2, 0], [0, 0, 1]])
    half, root = 0.5, np.sqrt(3) / 2
    turned = np.array([[root, -half, 0], [half, root, 0], [0, 0, 1]]) @ hexagonal
    cells = {"-3m": turned}  # pymatgen has -31m, and 321 and 3m1 as here
    cells |= dict.fromkeys(["3", "-3", "32", "3m", "6", "-6", "6/m", "622", "6mm"], hexagonal)
    cells |= dict.fromkeys(["-6m2", "6/mmm"], hexagonal)
    assert len(GENERATORS) == 32
    for symbol in GENERATORS:
        cell = cells.get(symbol, np.eye(3))
        expected = {
            tuple((cell @ op.rotation_matrix @ np.linalg.inv(cell)).ravel().round(6) + 0.0)
            for op in PointGroup(symbol).symmetry_ops
        }
        assert operations(symbol) == expected, symbol


def test_similarity_of_point_groups_by_hand():
    assert similarity("1", "-1") == 1 / 2
    assert similarity("mm2", "mmm") == 4 / 8
    # Both have the identity and the mirror across b.
    assert similarity("2/m", "mm2") == 2 / (4 + 4 - 2)
    assert similarity("6/mmm", "6/mmm") == 1
    assert similarity("-6m2", "6/mmm") == 12 / 24


def test_figure_3_by_hand(data, tmp_path):
    shown = figure("3", data, tmp_path)
    merges = shown[shown["panel"] == "a"]
    assert len(merges) == 4 - 1
    first = merges[merges["jaccard_index"] == 0.5].iloc[0]
    assert {first["one"], first["other"]} == {"-6m2", "6/mmm"}
    # Then 2/m and mm2; with 6/mmm they share all their 4 operations, with -6m2 two of them.
    both = np.mean([4 / 24, 4 / 24, 2 / 14, 2 / 14])
    np.testing.assert_allclose(merges["jaccard_index"], [0.5, 1 / 3, both], atol=0.005)
    shares = shown[shown["panel"] == "b"].set_index(["true", "point_group"])
    assert shares.loc[("mm2", "mm2"), "chance"] == 25
    # t0 and t1 are found first; then come t1 or t0, and t2.
    assert shares.loc[("mm2", "mm2"), "narrow"] == 100
    assert shares.loc[("mm2", "2/m"), "medium"] == pytest.approx(100 / 3, abs=0.005)
    # For t2 the list is t0 t2 t1 t3 t4, for t3 it is t0 t1 t3 t2 t4.
    assert shares.loc[("2/m", "mm2"), "narrow"] == 100
    assert shares.loc[("2/m", "2/m"), "medium"] == pytest.approx(100 / 3, abs=0.005)
    assert shares.loc[("2/m", "2/m"), "wide"] == 40
    assert shares.loc[("2/m", "-6m2"), "wide"] == 20


def test_figure_3_with_other_point_groups(data, tmp_path):
    path = tmp_path / "dd2d.parquet"
    groups = ["32", "32", "-3m", "-3m", "-3m", "4", "6", "m-3m"]
    answers(RANKS).assign(point_group=groups).to_parquet(path)
    shown = figure("3", data, tmp_path, predictions={"dd2d": path})
    assert shown["true"].dropna().unique().tolist() == ["-3m", "32"]
    answers(RANKS).assign(point_group="4mm").to_parquet(path)
    shown = figure("3", data, tmp_path, predictions={"dd2d": path})
    assert shown[["point_group", "chance", "wide"]].to_numpy().tolist() == [["4mm", 100, 100]]


def test_rare_point_groups_are_one_bar(data, tmp_path):
    path = tmp_path / "dd2d.parquet"
    groups = ["2/m", "m", "mmm", "4/m", "6/m", "m-3", "4mm", "6mm"]
    lists = [[f"t{k}"] * 5 for k in range(8)]
    answers(RANKS).assign(point_group=groups, candidates=lists).to_parquet(path)
    shown = figure("3", data, tmp_path, predictions={"dd2d": path})
    first = shown[shown["true"] == "2/m"].set_index("point_group")
    assert len(first) == 8
    assert first["chance"].sum() == 100
    assert first.loc["other", "chance"] == 12.5
    assert first.loc["2/m", "wide"] == 100


def test_figure_4_has_the_candidates(data, tmp_path):
    shown = figure("4", data, tmp_path)
    assert shown["material_id"].tolist() == ["t0", "t1", "t2", "t3", "t4"]
    assert shown["truth"].tolist() == [True, False, False, False, False]
    assert shown["cosine"].tolist() == [0.9, 0.8, 0.7, 0.6, 0.5]
    assert shown["r_factor_percent"].tolist() == [0, 20, 40, np.inf, 80]
    text = caption(tmp_path, "4")
    assert "0.600, no match" in text
    assert "the crystal that made it, at place 1" in text


def test_the_first_pattern_that_is_found_is_shown(data, tmp_path):
    path = tmp_path / "dd2d.parquet"
    answers([6, 7, 3, 1, 1, 1, 1, 1]).iloc[::-1].to_parquet(path)
    found = collect(data, tmp_path / "found.parquet", predictions=path)
    assert found["material_id"].tolist() == ["t2", "t0", "t1", "t2", "t3", "t4"]
    assert found["place"].tolist() == [0, 1, 2, 3, 4, 5]
    with torch.inference_mode():
        torch.manual_seed(1)
        batch = layers_of(layers_table()).batch(np.array([2]), 1.0)
        weights = DD2D(**NETWORK).eval().attention(batch)
    np.testing.assert_allclose(found["attention"][0], weights.ravel(), rtol=1e-5)
    answers([6] * 8).to_parquet(path)
    collect(data, tmp_path / "none.parquet", predictions=path)
    shown = figure("4", data, tmp_path, examples=tmp_path / "none.parquet")
    assert not shown["truth"].any()
    assert "The crystal that made it is not among them." in caption(tmp_path, "4")


def test_examples_are_of_the_inputs(data):
    example = read_example(data / "examples.parquet")
    np.testing.assert_allclose(example.spots, spots_of(0), rtol=1e-6)
    assert example.crystal.elements.tolist() == ["S", "S", "Ti"]
    assert example.crystal.numbers.tolist() == [16, 16, 22]
    assert np.isnan(example.crystal.score)
    np.testing.assert_allclose(example.crystal.cell, crystal(0).cell)
    np.testing.assert_allclose(example.crystal.positions[2], [0, 0, 9])
    assert example.attention.shape == (2, 4, 20, 20)
    assert example.candidates[1].formula == "M1S2"
    assert example.candidates[1].score == pytest.approx(0.8)


def test_examples_need_inputs_that_belong_together(data, tmp_path):
    path = tmp_path / "examples.parquet"
    with pytest.raises(InputError, match="is no DD2D"):
        collect(data, path, model=data / "invariant")
    layers = tmp_path / "layers.parquet"
    layers_table().query("material_id != 't3'").to_parquet(layers)
    with pytest.raises(InputError, match="does not have t3"):
        collect(data, path, layers=layers)
    predictions = tmp_path / "dd2d.parquet"
    renamed = {"t0": "x0"}
    table = answers(RANKS).replace({"material_id": renamed})
    table["candidates"] = [["x0"] * 5] * 8
    table.to_parquet(predictions)
    with pytest.raises(InputError, match="no pattern of x0"):
        collect(data, path, predictions=predictions)


def test_figure_of_retrieval_by_hand(data, tmp_path):
    shown = figure("retrieval", data, tmp_path).set_index(["condition", "model", "k"])
    assert len(shown) == 3 * 4 * 8
    course = shown.sort_index().loc["as_simulated", "DD2D, unperturbed"]
    assert course["top_k"].tolist() == [37.5, 50, 62.5, 75, 75, 87.5, 87.5, 100]
    assert course["chance"].tolist() == [12.5 * k for k in range(1, 9)]
    assert shown.loc[("rotated", "DD2D, unperturbed", 2), "top_k"] == 25
    one = figure("retrieval", data, tmp_path, predictions={"dd2d": data / "dd2d.parquet"})
    assert set(one["model"]) == {"DD2D, unperturbed"}
    text = caption(tmp_path, "retrieval")
    assert "Not run: DD2D, perturbed, Invariant, unperturbed and Invariant, perturbed." in text
    assert "VASP" not in text


def test_dataset_counts_layers(data, tmp_path):
    counted = pd.read_parquet(data / "dataset.parquet").set_index(["split", "family"])
    assert counted["layers"].sum() == 32
    assert counted.loc[("test", "hexagonal")].tolist() == [4, 1]
    assert counted.loc[("train", "oblique")].tolist() == [6, 0]
    layers = tmp_path / "layers.parquet"
    layers_table().drop(columns="relaxed").to_parquet(layers)
    summarize_layers(layers, tmp_path / "dataset.parquet", tmp_path / "run.json", 7)
    counted = pd.read_parquet(tmp_path / "dataset.parquet")
    assert (counted["layers"].sum(), counted["relaxed"].sum()) == (32, 0)
    layers_table().drop(columns="family").to_parquet(layers)
    with pytest.raises(InputError, match="family"):
        summarize_layers(layers, tmp_path / "dataset.parquet", tmp_path / "run.json", 7)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"rank": None}, "rank"),
        ({"rank": 0}, "rank outside of its gallery"),
        ({"checked_rank": 81}, "checked_rank outside"),
        ({"rank": 1.5}, "rank that is no whole number"),
        ({"twins": np.nan}, "rows without twins"),
        ({"condition": "rotated"}, "no answers to the patterns as simulated"),
        ({"gallery": "distractors"}, "no answers"),
    ],
)
def test_broken_predictions_are_named(columns, message, data, tmp_path):
    path, content = tmp_path / "dd2d.parquet", predicted()
    for name, value in columns.items():
        content = content.drop(columns=name) if value is None else content.assign(**{name: value})
    content.to_parquet(path)
    with pytest.raises(InputError, match=message) as error:
        table("1", data, tmp_path, predictions={"dd2d": path})
    assert str(path) in str(error.value)
    with pytest.raises(InputError, match=message):
        figure("retrieval", data, tmp_path, predictions={"dd2d": path})


def test_point_groups_and_candidates_must_be_known(data, tmp_path):
    path = tmp_path / "dd2d.parquet"
    answers(RANKS).assign(point_group="5m").to_parquet(path)
    with pytest.raises(InputError, match="'5m'"):
        figure("3", data, tmp_path, predictions={"dd2d": path})
    answers(RANKS).assign(candidates=[["z9"] * 5] * 8).to_parquet(path)
    with pytest.raises(InputError, match="z9"):
        figure("3", data, tmp_path, predictions={"dd2d": path})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"attention": None}, "attention"),
        ({"spots": [[0.1, 0.2]] * 6}, "does not hold a pattern"),
        ({"spots": [[]] * 6}, "no candidate, spot or attention"),
        ({"spots": [[0.1, np.nan, 0.2]] * 6}, "not finite"),
        ({"numbers": [[22]] * 6}, "does not hold a pattern"),
    ],
)
@pytest.mark.parametrize("name", EXAMPLES)
def test_broken_examples_are_named(name, columns, message, data, tmp_path):
    path, content = tmp_path / "examples.parquet", pd.read_parquet(data / "examples.parquet")
    for column, value in columns.items():
        content = content.drop(columns=column)
        content = content if value is None else content.assign(**{column: value})
    content.to_parquet(path)
    with pytest.raises(InputError, match=message) as error:
        figure(name, data, tmp_path, examples=path)
    assert str(path) in str(error.value)


def test_a_damaged_file_is_named(data, tmp_path):
    path = tmp_path / "broken.parquet"
    path.write_bytes(b"no table")
    for call in (
        lambda: table("1", data, tmp_path, predictions={"dd2d": path}),
        lambda: figure("4", data, tmp_path, examples=path),
        lambda: figure("1", data, tmp_path, architecture=path),
    ):
        with pytest.raises(InputError, match=r"broken\.parquet"):
            call()


def test_names_and_inputs_that_are_not_there(data, tmp_path):
    with pytest.raises(InputError, match="no table 9 of the structure_2d study"):
        table("9", data, tmp_path)
    with pytest.raises(InputError, match="no figure 9 of the structure_2d study"):
        make_figure("9", {}, CONTEXT, *[tmp_path / name for name in "abcd"])
    with pytest.raises(InputError, match="figure 1 shows DD2D, which was not run"):
        figure("1", data, tmp_path, architecture=None)
    with pytest.raises(InputError, match="figure 3 shows DD2D, which was not run"):
        figure("3", data, tmp_path, predictions={})
    with pytest.raises(InputError, match="none was run"):
        figure("retrieval", data, tmp_path, predictions={})
    for name in EXAMPLES:
        with pytest.raises(InputError, match="not given"):
            figure(name, data, tmp_path, examples=None)
