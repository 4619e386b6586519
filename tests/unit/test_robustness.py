"""Perturbed test patterns, from a real simulation to the table and the figure of robustness."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest
from test_config import DEFAULTS, SCHEMA, changed
from test_simulation_stage import CONFIG, CRYSTALS, SETTINGS, simulate
from test_store import assert_equal

from diffractory.augment.perturb import perturb_patterns
from diffractory.augment.spots import drop_spots, scale_positions
from diffractory.config import validate
from diffractory.evaluation.predictions import summarize_dataset
from diffractory.evaluation.symmetry_figures import make_figure
from diffractory.evaluation.symmetry_tables import make_table
from diffractory.store import InputError, generator, read_patterns
from diffractory.store.provenance import sha256
from diffractory.structures.cleaning import label_structure

SPLITS = {
    "halite": "train", "rutile": "test", "wurtzite": "test", "copper": "validation",
    "triclinic": "test",
}  # fmt: skip
LEVELS = CONFIG["symmetry"]["robustness"] | {
    "patterns": 8,
    "missing_spots": [0.2, 0.5],
    "thickness": [120.0],
}
CONTEXT = {"scale": "ci", "dataset": "toy", "source": "prototypes", "split_by": "material",
           "seed": 7}  # fmt: skip
SIMULATED = {
    "plain": {},
    "several": {"energies": [1e5, 2e5], "thicknesses": [100.0, 200.0], "count": 3},
}


@pytest.fixture(scope="module")
def structures(tmp_path_factory):
    rows = []
    for name, structure in CRYSTALS.items():
        content = json.dumps(structure.as_dict()).encode()
        row = label_structure(CONFIG["structures"], "json", content).row
        rows.append({"material_id": name, "split": SPLITS[name], **row})
    path = tmp_path_factory.mktemp("structures") / "structures.parquet"
    pd.DataFrame(rows).to_parquet(path)
    return path


@pytest.fixture(scope="module")
def stores(structures, tmp_path_factory):
    made = {}
    for name, changes in SIMULATED.items():
        made[name] = simulate(structures, tmp_path_factory.mktemp(name), threads=1, **changes)
    return made


def perturb(stores, structures, folder, kind="plain", threads=1, simulation=None, **levels):
    """Run the stage; return the patterns of its store, and its conditions."""
    perturb_patterns(
        stores[kind],
        structures,
        folder / "perturbed",
        folder / "conditions.parquet",
        folder / "run.json",
        LEVELS | levels,
        SETTINGS | SIMULATED[kind] | (simulation or {}),
        seed=1,
        threads=threads,
    )
    conditions = pd.read_parquet(folder / "conditions.parquet")
    return read_patterns(folder / "perturbed"), conditions


def under(patterns, conditions, perturbation, level):
    """Return the patterns of one condition."""
    rows = (conditions["perturbation"] == perturbation) & (conditions["level"] == level)
    return patterns.select(conditions.loc[rows, "pattern"].to_numpy())


def test_store_holds_test_patterns_and_then_all_of_them_under_every_condition(
    stores, structures, tmp_path
):
    patterns, conditions = perturb(stores, structures, tmp_path)
    whole = read_patterns(stores["plain"])
    assert conditions["pattern"].tolist() == list(range(len(patterns)))
    expected = [("none", 0.0), *((name, level) for name in list(LEVELS)[1:]
                                 for level in LEVELS[name])]  # fmt: skip
    condition = conditions[["perturbation", "level"]]
    assert list(map(tuple, condition.drop_duplicates().to_numpy())) == expected
    assert (condition.value_counts() == 8).all()
    original = conditions["original"].to_numpy()[:8]
    assert (conditions["original"].to_numpy().reshape(-1, 8) == original).all()
    chosen = under(patterns, conditions, "none", 0.0)
    assert_equal(chosen, whole.select(original))
    assert {SPLITS[name] for name in patterns.material_id} == {"test"}
    assert set(chosen.material_id) == {"rutile", "wurtzite", "triclinic"}
    assert np.array_equal(conditions["thickness"], patterns.thickness)
    rng = generator(1, "perturb", "missing_spots/0.5")
    dropped = under(patterns, conditions, "missing_spots", 0.5)
    assert_equal(dropped, drop_spots(chosen, 0.5, rng))
    wrong = under(patterns, conditions, "calibration_error", -0.05)
    assert_equal(wrong, scale_positions(chosen, -0.05))
    for name in ("spurious_spots", "position_jitter", "centre_offset"):
        spoilt = under(patterns, conditions, name, LEVELS[name][0])
        assert not np.array_equal(spoilt.qx, chosen.qx)
    facts = json.loads((tmp_path / "run.json").read_text())["facts"]
    assert facts == {"patterns": len(patterns), "conditions": len(expected)}


def test_patterns_are_taken_evenly_and_at_most_all(stores, structures, tmp_path):
    materials = read_patterns(stores["plain"]).material_id
    tested = np.flatnonzero([SPLITS[name] == "test" for name in materials])
    _, conditions = perturb(stores, structures, tmp_path, patterns=5)
    chosen = np.searchsorted(tested, conditions["original"].unique())
    assert (chosen // 3).tolist() == [0, 1, 2, 3, 4]  # one of every three of the fifteen
    _, conditions = perturb(stores, structures, tmp_path, patterns=1000)
    assert conditions["original"].unique().tolist() == tested.tolist()


def test_thickness_of_the_store_gives_the_original_patterns(stores, structures, tmp_path):
    patterns, conditions = perturb(stores, structures, tmp_path, thickness=[200.0])
    again = under(patterns, conditions, "thickness", 200.0)
    assert_equal(again, under(patterns, conditions, "none", 0.0))


def test_other_thicknesses_are_of_the_same_orientation_and_energy(stores, structures, tmp_path):
    """Of a store with several energies and thicknesses, each pattern finds its own."""
    patterns, conditions = perturb(
        stores, structures, tmp_path, "several", patterns=30, thickness=[200.0, 100.0]
    )
    whole = read_patterns(stores["several"])
    chosen = under(patterns, conditions, "none", 0.0)
    assert len(set(zip(chosen.energy, chosen.thickness, strict=True))) == 4
    for thickness in (100.0, 200.0):
        made = under(patterns, conditions, "thickness", thickness)
        for k in range(len(chosen)):
            same = (
                (whole.orientation == chosen.orientation[k]).all(axis=(1, 2))
                & (whole.energy == chosen.energy[k])
                & (whole.thickness == thickness)
            )
            expected, found = whole.select(np.flatnonzero(same)), made.select(np.array([k]))
            assert found.material_id.tolist() == expected.material_id.tolist()
            assert np.array_equal(found.hkl, expected.hkl)
            np.testing.assert_allclose(found.intensity, expected.intensity, atol=1e-5)


def test_result_does_not_depend_on_threads_or_on_the_other_levels(stores, structures, tmp_path):
    for threads in (1, 2):
        (tmp_path / str(threads)).mkdir()
        perturb(stores, structures, tmp_path / str(threads), threads=threads)
    for name in ("perturbed", "conditions.parquet"):
        assert sha256(tmp_path / "1" / name) == sha256(tmp_path / "2" / name)
    levels = {"missing_spots": [0.5], "position_jitter": [0.02], "thickness": [120.0]}
    more, of_more = perturb(stores, structures, tmp_path)
    fewer, of_fewer = perturb(stores, structures, tmp_path, **levels)
    for name, (level,) in levels.items():
        assert_equal(under(fewer, of_fewer, name, level), under(more, of_more, name, level))


def test_a_store_of_another_simulation_is_refused(stores, structures, tmp_path):
    for change in ({"orientations": "random"}, {"energies": [3e5]}):
        with pytest.raises(InputError, match="the patterns of rutile have orientations or energie"):
            perturb(stores, structures, tmp_path, simulation=change)
    assert not (tmp_path / "perturbed").exists()


def test_no_test_pattern_is_one_sentence(stores, structures, tmp_path):
    path = tmp_path / "structures.parquet"
    pd.read_parquet(structures).assign(split="train").to_parquet(path)
    with pytest.raises(InputError, match=r"belongs to the test part: .* raise split\.test"):
        perturb(stores, path, tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("missing_spots", [1.2], r"missing_spots\.0 must be at most 1, not 1\.2"),
        ("spurious_spots", [0.0], r"spurious_spots\.0 must be greater than 0"),
        ("calibration_error", [-1.0], r"calibration_error\.0 must be greater than -1"),
        ("thickness", [], "thickness must be a list of 1"),
        ("patterns", 0, "patterns must be at least 1"),
    ],
)
def test_wrong_levels_are_named(key, value, sentence):
    with pytest.raises(InputError, match=rf"symmetry\.robustness\.{sentence}"):
        validate(changed(f"symmetry.robustness.{key}", value), SCHEMA, DEFAULTS)


def predicted(folder, conditions, model, right):
    """Write predictions of a model that is right on so many patterns of each condition."""
    condition = conditions[["perturbation", "level"]]
    most = [right.get(key, 0) for key in map(tuple, condition.to_numpy())]
    is_right = condition.groupby(["perturbation", "level"]).cumcount() < most
    path = folder / f"{model}.parquet"
    pd.DataFrame({
        "pattern": conditions["pattern"],
        "crystal_system": "cubic",
        "predicted_crystal_system": np.where(is_right, "cubic", "trigonal"),
    }).sample(frac=1, random_state=3).to_parquet(path)  # fmt: skip
    return path


@pytest.fixture(params=SIMULATED)
def shown(request, stores, structures, tmp_path):
    """Return inputs of table and figure, with known accuracies of two models."""
    _, conditions = perturb(stores, structures, tmp_path, request.param)
    summarize_dataset(
        stores[request.param], structures, tmp_path / "d.parquet", tmp_path / "d.json", 7
    )
    right = {("none", 0.0): 7, ("missing_spots", 0.2): 5, ("missing_spots", 0.5): 2,
             ("calibration_error", -0.05): 8, ("thickness", 120.0): 6}  # fmt: skip
    paths = {"ours": predicted(tmp_path, conditions, "ours", right),
             "random_forest": predicted(tmp_path, conditions, "random_forest", {})}  # fmt: skip
    return request.param, right, paths, tmp_path


def table(folder, paths, conditions="conditions.parquet"):
    files = [folder / f"table_robustness.{suffix}" for suffix in ("csv", "md", "run.json")]
    make_table(
        "robustness", folder / "d.parquet", paths, CONTEXT, *files,
        conditions=conditions and folder / conditions,
    )  # fmt: skip
    return pd.read_csv(files[0], dtype=str, keep_default_na=False)


def figure(folder, paths):
    suffixes = ("svg", "png", "csv", "run.json")
    files = [folder / f"figure_robustness.{suffix}" for suffix in suffixes]
    make_figure(
        "robustness", folder / "d.parquet", paths, CONTEXT, *files,
        conditions=folder / "conditions.parquet",
    )  # fmt: skip
    return pd.read_csv(files[2])


def test_table_holds_the_known_accuracies(shown):
    _, right, paths, folder = shown
    cells = table(folder, paths).set_index(["row", "column"])
    rows = {"As simulated": ("none", 0.0), "Missing spots, 20 %": ("missing_spots", 0.2),
            "Missing spots, 50 %": ("missing_spots", 0.5),
            "Calibration error, -5 %": ("calibration_error", -0.05),
            "Foil thickness, 120 Å": ("thickness", 120.0)}  # fmt: skip
    for row, condition in rows.items():
        ours = cells.loc[row, "Ours"]
        assert ours["value"] == f"{100 * right[condition] / 8:.1f}"
        interval = binomtest(right[condition], 8).proportion_ci(method="wilson")
        low, high = ours["interval"].split("\N{EN DASH}")
        assert (low, high) == (f"{100 * interval.low:.1f}", f"{100 * interval.high:.1f}")
        assert (ours["n_test"], ours["published"], ours["unit"]) == ("8", "", "%")
    order = list(dict.fromkeys(cells.index.get_level_values("row")))
    assert len(order) == 1 + 2 + 4 + 4 + 4 + 4 + 1
    assert [row for row in order if row in rows] == list(rows)
    assert set(cells.xs("RF", level="column")["value"]) == {"0.0"}
    assert set(cells.xs("MVOF-ML", level="column")["value"]) == {"not run"}
    text = (folder / "table_robustness.md").read_text("utf-8")
    assert "Not run: PE-AG-GMoE" in text
    assert set(table(folder, {})["value"]) == {"not run"}


def test_figure_holds_the_known_accuracies(shown):
    kind, right, paths, folder = shown
    points = figure(folder, paths)
    assert set(points["model"]) == {"Ours", "RF"}
    assert (points.loc[points["model"] == "RF", "accuracy"] == 0).all()
    ours = points[points["model"] == "Ours"].set_index(["perturbation", "level"])
    for condition in list(right)[1:]:
        point = ours.loc[condition]
        assert point["accuracy"] == pytest.approx(100 * right[condition] / 8, abs=0.006)
        interval = binomtest(right[condition], 8).proportion_ci(method="wilson")
        assert point["low"] == pytest.approx(100 * interval.low, abs=0.006)
        assert point["high"] == pytest.approx(100 * interval.high, abs=0.006)
        assert point["patterns"] == 8
    levels = [float(level) for level in ours.loc["position_jitter"].index]
    assert levels == [0.0, *LEVELS["position_jitter"]]
    for name in ("missing_spots", "spurious_spots", "calibration_error"):
        assert ours.loc[name, 0.0]["accuracy"] == 87.5
    # In the panel of the thickness, patterns as simulated stand at their own.
    simulated = ours.loc["thickness"].drop(120.0)
    expected = {"plain": [200.0], "several": [100.0, 200.0]}[kind]
    assert simulated.index.tolist() == expected
    assert simulated["patterns"].sum() == 8
    assert np.average(simulated["accuracy"], weights=simulated["patterns"]) == pytest.approx(
        87.5, abs=0.01
    )
    svg = (folder / "figure_robustness.svg").read_text("utf-8")
    assert "8 single test patterns" in svg
    assert f"than the {' and '.join(f'{t:g}' for t in expected)} Å" in svg
    assert "Not run: PE-AG-GMoE and MVOF-ML." in svg


def test_outputs_are_the_same_bytes_whatever_the_order_of_rows(shown):
    _, _, paths, folder = shown
    names = [f"table_robustness.{s}" for s in ("csv", "md")]
    names += [f"figure_robustness.{s}" for s in ("csv", "svg", "png")]
    found = []
    for state in (4, 5):
        for path in paths.values():
            pd.read_parquet(path).sample(frac=1, random_state=state).to_parquet(path)
        table(folder, paths)
        figure(folder, paths)
        found.append([(folder / name).read_bytes() for name in names])
    assert found[0] == found[1]


def test_predictions_of_other_patterns_are_refused(shown):
    _, _, paths, folder = shown
    some = pd.read_parquet(paths["ours"])
    for other in (some.iloc[1:], pd.concat([some.iloc[1:], some.iloc[1:2]])):
        other.to_parquet(folder / "other.parquet")
        with pytest.raises(InputError, match="does not hold one prediction for each pattern"):
            table(folder, {"ours": folder / "other.parquet"})
    with pytest.raises(InputError, match="whose conditions are not given"):
        table(folder, paths, conditions=None)
    with pytest.raises(InputError, match=r"d\.parquet is not a table with pattern, perturbation"):
        table(folder, paths, conditions="d.parquet")
