"""The table, the confusion and the figure of a scan, from maps and a truth made by hand."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from diffractory.config import validate
from diffractory.evaluation.metrics import wilson_interval
from diffractory.evaluation.symmetry_figures import make_figure
from diffractory.evaluation.symmetry_tables import make_table
from diffractory.store import CRYSTAL_SYSTEMS, InputError
from diffractory.store.scan_maps import (
    CLASSIFIED,
    NOT_CONFIDENT,
    TOO_FEW,
    UNUSABLE,
    ScanMap,
    write_map,
)

ROOT = Path(__file__).parents[2]
DEFAULTS = ROOT / "config/config.yaml"
CUBIC, HEXAGONAL, TETRAGONAL, TRIGONAL = map(
    CRYSTAL_SYSTEMS.index, ("cubic", "hexagonal", "tetragonal", "trigonal")
)
CONTEXT = {"scale": "demo", "dataset": "toy", "source": "prototypes", "split_by": "material",
           "seed": 7, "scan": "gold"}  # fmt: skip
SETTINGS = {"min_spots": 5, "median_filter": 3, "min_confidence": 0.01, "pool": False}
STAND_IN = "simulated scan of gold nanoparticles (abTEM) in place of the published one"
SHAPE = (4, 5)
N = 20


def make_map(system, state, step=20.0, warnings=()):
    """Return a map of 4 x 5 positions, given the system (-1: none) and state of each."""
    state = np.reshape(state, SHAPE).astype(np.int8)
    system = np.reshape(system, SHAPE).astype(np.int8)
    probability = np.full((*SHAPE, 7), 1 / 7, dtype=np.float32)
    groups = np.zeros((*SHAPE, 3))
    return ScanMap(
        n_spots=np.full(SHAPE, 9, dtype=np.int32),
        dark_field=np.linspace(0, 0.5, N, dtype=np.float32).reshape(SHAPE),
        probability=probability,
        crystal_system_raw=system,
        crystal_system=system,
        confidence=np.full(SHAPE, 0.5, dtype=np.float32),
        space_group=groups.astype(np.int16),
        space_group_probability=groups.astype(np.float32),
        state=state,
        attributes={"step": step, "every": 1, "settings": SETTINGS, "warnings": list(warnings)},
    )


# Of 20 positions: 6 cubic, 3 hexagonal, 1 tetragonal and 2 trigonal ones, and 8 that abstain.
SYSTEM = [CUBIC] * 6 + [HEXAGONAL] * 3 + [TETRAGONAL] + [TRIGONAL] * 2 + [-1] * 8
STATE = [CLASSIFIED] * 12 + [TOO_FEW] * 5 + [NOT_CONFIDENT] * 2 + [UNUSABLE]
ALL_CUBIC = [CUBIC] * N, [CLASSIFIED] * N


def make_truth(**columns):
    """Return what is at each position: a sphere of no special orientation, but for ``columns``."""
    truth = {"position": np.arange(N), "particle": 0, "kind": "sphere", "overlap": False,
             "twinned": False, "thickness": 40.0, "angle_111": 30.0, "angle_100": 30.0,
             "angle_110": 30.0}  # fmt: skip
    return pd.DataFrame(truth | columns)


@pytest.fixture
def dataset(tmp_path):
    path = tmp_path / "dataset.parquet"
    columns = {"material_id": ["a", "b", "c"], "split": ["train", "train", "test"]}
    columns |= {"crystal_system": ["cubic", "hexagonal", "cubic"], "space_group": [225, 194, 225]}
    pd.DataFrame(columns | {"n_patterns": [30, 12, 9]}).to_parquet(path)
    return path


def written(folder, maps):
    """Write maps by model; return their folders."""
    for model, one in maps.items():
        (folder / "maps" / model).mkdir(parents=True)
        write_map(folder / "maps" / model, one)
    return {model: folder / "maps" / model for model in maps}


def table(name, dataset, folder, maps, truth=None, context=CONTEXT):
    path = None if truth is None else folder / "truth.parquet"
    if truth is not None:
        truth.to_parquet(path)
    files = [folder / f"table_{name}.{suffix}" for suffix in ("csv", "md", "run.json")]
    make_table(name, dataset, written(folder, maps), context, *files, conditions=path)
    return pd.read_csv(files[0], dtype=str, keep_default_na=False), files[1].read_text("utf-8")


def figure(dataset, folder, maps, truth=None, context=CONTEXT):
    path = None if truth is None else folder / "truth.parquet"
    if truth is not None:
        truth.to_parquet(path)
    files = [folder / f"figure_2.{suffix}" for suffix in ("svg", "png", "csv", "run.json")]
    make_figure("2", dataset, written(folder, maps), context, *files, conditions=path)
    return pd.read_csv(files[2]), files[0].read_text("utf-8")


def row(cells, label, what="value"):
    part = cells[cells["row"] == label]
    return dict(zip(part["column"], part[what], strict=True))


def test_shares_are_of_the_classified_positions(dataset, tmp_path):
    maps = {"random_forest": make_map(*ALL_CUBIC), "pe_ag_gmoe": make_map(SYSTEM, STATE)}
    cells, text = table("scan", dataset, tmp_path, maps)
    assert list(dict.fromkeys(cells["row"])) == ["PE-AG-GMoE", "RF"]
    assert row(cells, "PE-AG-GMoE") == {
        "Cubic": "50.0", "Hexagonal": "25.0", "Tetragonal": "8.3", "Other systems": "16.7",
        "Positions": "20", "Classified": "12", "Too few spots": "5", "Not confident": "2",
        "Unusable frame": "1",
    }  # fmt: skip
    published = {"Cubic": "48", "Hexagonal": "44", "Tetragonal": "8"}
    assert published.items() <= row(cells, "PE-AG-GMoE", "published").items()
    published = {"Cubic": "40", "Hexagonal": "40", "Tetragonal": "20"}
    assert published.items() <= row(cells, "RF", "published").items()
    low, high = (f"{100 * bound:.1f}" for bound in wilson_interval(6, 12))
    assert row(cells, "PE-AG-GMoE", "interval")["Cubic"] == f"{low}\N{EN DASH}{high}"
    assert set(cells["n_train"]) == {"42"}
    assert row(cells, "PE-AG-GMoE", "n_test")["Cubic"] == "12"
    assert cells["stand_in"].str.endswith(f"; {STAND_IN}").all()
    assert "fewer than 5 diffracted spots" in text
    assert "the median over 3 x 3 positions" in text
    assert "differ by less than 0.01 the model abstains" in text


def test_what_mapping_warned_of_is_in_the_notes(dataset, tmp_path):
    maps = {
        "ours": make_map(SYSTEM, STATE, warnings=["other voltage", "no direct beam"]),
        "random_forest": make_map(SYSTEM, STATE, warnings=["other voltage"]),
    }
    _, text = table("scan", dataset, tmp_path, maps)
    assert "- RF and Ours: other voltage.\n" in text
    assert "- Ours: no direct beam.\n" in text


def test_a_scan_without_a_classified_position_has_no_shares(dataset, tmp_path):
    nothing = make_map([-1] * N, [TOO_FEW] * N)
    cells, _ = table("scan", dataset, tmp_path, {"ours": nothing})
    shares = cells[cells["unit"] == "%"]
    assert set(shares["value"]) == {"\N{EN DASH}"}
    assert row(cells, "Ours")["Too few spots"] == "20"
    assert set(cells["published"]) == {""}


def test_a_scan_of_the_user_is_named_as_such(dataset, tmp_path):
    own = CONTEXT | {"scan": "file"}
    cells, text = table("scan", dataset, tmp_path, {"ours": make_map(SYSTEM, STATE)}, context=own)
    assert (
        cells["stand_in"]
        .str.endswith("; scan of another specimen in place of the published one")
        .all()
    )
    assert "simulated" not in text


def test_confusion_is_by_what_is_there(dataset, tmp_path):
    """Twenty positions by hand; those of ``SYSTEM`` with the same number have the answers."""
    truth = make_truth(
        particle=[0, 0, 1, 1, 2, 2, 3, 3, 3, 4, 4, 4] + [-1] * 8,
        kind=["sphere"] * 4 + ["decahedron"] * 8 + ["none"] * 8,
        overlap=[False, False, False, True] + [False] * 16,
        twinned=[False] * 6 + [True] * 3 + [False] * 11,
        angle_111=[5.0, 30.0, 10.0, 5.0, 40.0, 40.0, 5.0, 5.0, 5.0, 10.1, 40.0, 40.0]
        + [np.nan] * 8,
        angle_110=[30.0] * 10 + [0.0, 30.0] + [np.nan] * 8,
        angle_100=[30.0] * 12 + [np.nan] * 8,
        thickness=np.arange(20.0),
    )
    cells, text = table(
        "scan_confusion", dataset, tmp_path, {"ours": make_map(SYSTEM, STATE)}, truth
    )

    def counted(group):
        found = row(cells, f"Ours, {group}")
        return found["Positions"], found["Particles"], found["Cubic"], found["Hexagonal"]

    assert counted("sphere") == ("3", "2", "100.0", "0.0")
    assert counted("decahedron, one grain") == ("5", "2", "40.0", "0.0")
    assert counted("decahedron, several grains") == ("3", "1", "0.0", "100.0")
    assert counted("overlapping particles") == ("1", "1", "100.0", "0.0")
    assert counted("along <111>") == ("2", "2", "100.0", "0.0")
    assert counted("along <100>") == ("0", "0", "\N{EN DASH}", "\N{EN DASH}")
    assert counted("along <110>") == ("1", "1", "0.0", "0.0")
    assert row(cells, "Ours, along <110>")["Other systems"] == "100.0"
    assert counted("other orientation") == ("5", "3", "60.0", "0.0")
    assert counted("no particle") == ("8", "0", "0.0", "0.0")
    assert row(cells, "Ours, no particle")["Abstained"] == "100.0"
    assert row(cells, "Ours, decahedron, one grain")["Tetragonal"] == "20.0"
    assert "The degeneracy along <111>" in text
    assert "6 angstrom thick in the median and 11 at most" in text
    assert set(cells["published"]) == {""}


def test_every_position_is_of_one_kind_and_all_shares_add_up(dataset, tmp_path):
    rng = np.random.default_rng(3)
    particle = rng.integers(-1, 4, N)
    truth = make_truth(
        particle=particle,
        kind=np.where(particle < 0, "none", np.where(particle < 2, "sphere", "decahedron")),
        overlap=rng.random(N) < 0.3,
        twinned=(rng.random(N) < 0.5) & (particle >= 2),
        angle_111=rng.uniform(0, 20, N),
    )
    cells, _ = table("scan_confusion", dataset, tmp_path, {"ours": make_map(SYSTEM, STATE)}, truth)
    kinds = ["sphere", "decahedron, one grain", "decahedron, several grains",
             "overlapping particles", "no particle"]  # fmt: skip
    total = [int(row(cells, f"Ours, {kind}")["Positions"]) for kind in kinds]
    assert sum(total) == N
    axes = ["along <111>", "along <100>", "along <110>", "other orientation"]
    single = [int(row(cells, f"Ours, {name}")["Positions"]) for name in axes]
    assert sum(single) == total[0] + total[1]
    for label in cells["row"].unique():
        found = row(cells, label)
        if found["Positions"] != "0":
            names = ("Cubic", "Hexagonal", "Tetragonal", "Other systems", "Abstained")
            assert sum(float(found[name]) for name in names) == pytest.approx(100, abs=0.3)


def test_figure_holds_every_position_and_share(dataset, tmp_path):
    maps = {"pe_ag_gmoe": make_map(SYSTEM, STATE), "ours": make_map(*ALL_CUBIC)}
    truth = make_truth(particle=[0] * 12 + [-1] * 8, angle_100=[3.0] * 4 + [30.0] * 16)
    data, svg = figure(dataset, tmp_path, maps, truth)
    places, shares = data[data["panel"] == "a, b, d"], data[data["panel"] == "c"]
    assert len(places) == N
    names = [CRYSTAL_SYSTEMS[k] for k in SYSTEM[:12]]
    names += ["too few spots"] * 5 + ["not confident"] * 2 + ["unusable frame"]
    assert places["PE-AG-GMoE"].tolist() == names
    assert places["Ours"].tolist() == ["cubic"] * N
    expected = ["along <100>"] * 4 + ["other orientation"] * 8 + ["no particle"] * 8
    assert places["shown"].tolist() == expected
    assert places[["row", "column"]].to_numpy()[7].tolist() == [1, 2]
    assert places["dark_field_percent"].iloc[-1] == 50
    first = shares[shares["model"] == "PE-AG-GMoE"].set_index("crystal_system")
    assert first["positions"].sum() == 12
    assert first.loc["cubic", ["percent", "published_percent"]].tolist() == [50, 48]
    assert shares.loc[shares["model"] == "Ours", "published_percent"].isna().all()
    assert set(data["stand_in"]) == {STAND_IN}
    assert f"{STAND_IN[1:]}" in svg


def test_figure_of_a_measured_scan_shows_no_truth(dataset, tmp_path):
    maps = {"ours": make_map(SYSTEM, STATE, step=None)}
    data, svg = figure(dataset, tmp_path, maps, context=CONTEXT | {"scan": "file"})
    assert "shown" not in data
    assert "What is there" not in svg
    assert "imulated" not in svg


def test_what_is_not_of_one_scan_is_named(dataset, tmp_path):
    maps = {"ours": make_map(SYSTEM, STATE)}
    for k, (truth, sentence) in enumerate([
        (None, "known of a simulated one alone"),
        (make_truth().iloc[:-1], "does not have one row for each position"),
        (make_truth().drop(columns="angle_110"), "is not a table with"),
    ]):  # fmt: skip
        (tmp_path / str(k)).mkdir()
        with pytest.raises(InputError, match=sentence):
            table("scan_confusion", dataset, tmp_path / str(k), maps, truth)
    folder = tmp_path / "no"
    files = [folder / f"table.{suffix}" for suffix in ("csv", "md", "run.json")]
    folder.mkdir()
    with pytest.raises(InputError, match="does not hold the map of a scan: map it again"):
        make_table("scan", dataset, {"ours": folder}, CONTEXT, *files)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("median_filter", 4, r"median_filter must be one of \[1, 3, 5"),
        ("min_confidence", 1.5, "min_confidence must be at most 1"),
        ("models", ["resnet"], r"models\.0 must be one of"),
        ("models", [], "models must be a list of 1"),
        ("min_spot", 5, r"min_spot: did you mean symmetry\.scan\.min_spots\?"),
    ],
)
def test_wrong_settings_are_named(key, value, sentence):
    config = yaml.safe_load(DEFAULTS.read_text())
    config["symmetry"]["scan"][key] = value
    with pytest.raises(InputError, match=rf"symmetry\.scan\.{sentence}"):
        validate(config, ROOT / "workflow/schemas/config.schema.yaml", DEFAULTS)
