"""Figures of the generation study from hand-made samples and evaluations, and built networks."""

import json
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from diffractory.evaluation.generation import COLUMNS, MODELS
from diffractory.evaluation.generation_crystal_figures import _drawn_near
from diffractory.evaluation.generation_drawings import (
    ShownCell,
    _with_copies,
    draw_crystal,
    obstacle,
    project,
)
from diffractory.evaluation.generation_figures import EDGES, FIGURES, TRACE, VARIANTS, make_figure
from diffractory.evaluation.generation_schemes import encoders_figure, scheme_figure
from diffractory.evaluation.style import figure_style
from diffractory.models.crystal_vae import CrystalVae
from diffractory.models.periodic_graph import UnitCells
from diffractory.store import InputError
from diffractory.training.stage import follow

CONTEXT = {
    "scale": "demo",
    "seed": 7,
    "calculator": "chgnet",
    "pressure": 10.0,
    "steps": {"dp_cdvae": 1000, "ours": 50},
    "sources": {"perovskites": {}, "carbon_24": {"paths": ["val.csv", "test.csv"]}},
}

NETWORK = {
    "process": "ddpm",
    "fourier": [0, 3],
    "encode_n_sites": False,
    "encode_gine": False,
    "latent": 16,
    "encoder": {
        "hidden_dim": 16,
        "n_blocks": 1,
        "n_spherical": 3,
        "n_radial": 6,
        "gine_layers": 1,
    },
    "decoder": {"hidden_dim": 16, "n_layers": 1},
    "denoiser": {"hidden_dim": 16, "n_blocks": 1, "n_spherical": 3, "n_radial": 8},
    "cutoff": 6.0,
    "max_neighbours": 12,
    "max_sites": 8,
    "diffusion": {"steps": 20, "beta_min": 1e-10, "beta_max": 0.01, "type_sigma_min": 0.01,
                  "type_sigma_max": 5.0},
    "loss_weights": dict.fromkeys(
        ("coordinates", "types", "lattice", "n_sites", "composition", "kl"), 1.0
    ),
}  # fmt: skip

SAMPLED = ("ftcp", "dp_cdvae", "ours")

NUMBERS = [8, 8, 8, 22, 56]
POSITIONS = [0.5, 0.5, 0, 0.5, 0, 0.5, 0, 0.5, 0.5, 0.5, 0.5, 0.5, 0, 0, 0]
LATTICE = [4.0, 0, 0, 0, 4.0, 0, 0, 0, 4.2]


def evaluated(kind, n, **columns):
    """Return a table of a kind of evaluation, with some of its columns given."""
    words, truths, numbers = COLUMNS[kind]
    table = dict.fromkeys(words, "") | dict.fromkeys(truths, True) | dict.fromkeys(numbers, 0.1)
    table |= {"item": np.arange(n), "n_sites": 5, "n_elements": 3, "steps": 100} | columns
    return pd.DataFrame(table, index=range(n))[[*words, *truths, *numbers]]


def sampled(n, **columns):
    table = pd.DataFrame({"item": np.arange(n), "task": "generation", "sampler": ""})
    crystal = {"lattice": LATTICE, "positions": POSITIONS, "numbers": NUMBERS} | columns
    return table.assign(**{name: [value] * n for name, value in crystal.items()})


def traced(steps=20):
    """Return a trajectory that moves all atoms by (1.3, 0, 0) at first, and by less with time."""
    rows = []
    for step in range(steps, -1, -1):
        moved = np.reshape(POSITIONS, (-1, 3)) + np.array([1.3 * step / steps, 0, 0])
        rows.append({"step": step, "time": step / steps, "lattice": LATTICE, "numbers": NUMBERS,
                     "positions": (moved % 1).ravel(), "unwrapped": moved.ravel(),
                     "material_id": "perovskite_BaTiO3", "generator": "dp_cdvae"})  # fmt: skip
    return pd.DataFrame(rows)


def crystal():
    positions = torch.tensor(POSITIONS).reshape(-1, 3)
    lattice = torch.tensor(LATTICE).reshape(1, 3, 3)
    return UnitCells(positions, torch.tensor(NUMBERS), lattice, torch.tensor([5]))


def variant(model):
    changes = {"encode_n_sites": "_na" in model, "encode_gine": "gine" in model}
    torch.manual_seed(1)
    return CrystalVae(NETWORK | changes).eval()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """All inputs of all figures, by kind, data set and model."""
    folder = tmp_path_factory.mktemp("figures")
    files = {}

    def write(kind, dataset, model, table):
        path = folder / kind / dataset / f"{model}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        table.to_parquet(path)
        files.setdefault(kind, {}).setdefault(dataset, {})[model] = path

    for model in SAMPLED:
        write("samples", "perovskites", model, sampled(8))
        formulas = {"formula": "BaTiO3", "valid_composition": [k % 2 == 0 for k in range(8)]}
        write("generated", "perovskites", model, evaluated("generated", 8, **formulas))
    for model in ("cdvae", "dp_cdvae"):
        after = -8 - np.array([0.07, 0.1, 0.1, 0.3, -0.01, 9.0, 0.1])
        write("relaxed", "carbon_24", model, evaluated(
            "relaxed", 7, energy_before=-8.0, energy_after=after, converged=[True] * 6 + [False]
        ))  # fmt: skip
    matched = {"": [True] * 3 + [False], "steps_20": [True] + [False] * 3, "eq_6": [False] * 4}
    parts = [
        evaluated("reconstructed", 4, sampler=sampler, matched=found, matched_default=found,
                  rms=np.where(found, [0.01, 0.02, 0.06, 0], np.nan),
                  rms_default=np.where(found, 0.1, np.nan))
        for sampler, found in matched.items()
    ]  # fmt: skip
    for model in ("dp_cdvae", "ours"):
        write("reconstructed", "perovskites", model, pd.concat(parts))
    for model in VARIANTS:
        network = variant(model)
        network.forward = network.loss  # as in training
        path = folder / "models" / "perovskites" / model
        path.mkdir(parents=True)
        blocks = follow(network, crystal())
        (path / "architecture.json").write_text(json.dumps(blocks), "utf-8")
        files.setdefault("models", {}).setdefault("perovskites", {})[model] = path
    traced().to_parquet(folder / "trajectory.parquet")
    return files, folder / "trajectory.parquet"


def figure(name, data, folder, **changes):
    files, trace = data
    shown = {"files": files, "trace": trace if name in TRACE else None, "context": CONTEXT}
    svg, png, csv, run = (folder / f"f{name}.{suffix}" for suffix in ("svg", "png", "csv", "json"))
    make_figure(name, svg=svg, png=png, csv=csv, run=run, **(shown | changes))
    return pd.read_csv(csv)


def few(data, kind, model="ours"):
    """Return the files of one kind and model."""
    return {"perovskites": {model: data[0][kind]["perovskites"][model]}}


def caption(folder, name):
    return " ".join((folder / f"f{name}.svg").read_text("utf-8").split())


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_the_same_again_and_say_their_data(name, data, tmp_path):
    folders = tmp_path / "first", tmp_path / "second"
    for folder in folders:
        shown = figure(name, data, folder)
        assert len(shown) > 1
        assert set(shown["scale"]) == {"demo"}
        assert set(shown["dataset"]) == {"carbon_24" if name == "S2" else "perovskites"}
    for suffix in ("svg", "png", "csv"):
        one, two = (folder / f"f{name}.{suffix}" for folder in folders)
        assert one.read_bytes() == two.read_bytes()
    record = json.loads((folders[0] / f"f{name}.json").read_text("utf-8"))
    assert record["config"]["figure"] == name
    text = caption(folders[0], name)
    assert ("Stand-ins" in text) == (name not in ("1", "S1"))
    if name == "S2":
        assert "val and test files of Carbon-24 for all of it; MLIP-relaxed with CHGNet" in text
    elif "Stand-ins" in text:
        assert "Stand-ins: embedded perovskites for Perov-5." in text


def test_figure_1_has_the_modules_of_the_network(data, tmp_path):
    shown = figure("1", data, tmp_path).set_index("name")
    network = variant("dp_cdvae")
    assert shown.groupby("group", sort=False).size().index.tolist() == [
        "encoder", "decoder", "denoiser",
    ]  # fmt: skip
    assert shown.loc["lattice_decoder", "outputs"] == "6"
    assert shown.loc["composition_decoder", "outputs"] == "100"
    assert shown.loc["denoiser", "kind"] == "GemNetT"
    assert shown.loc["denoiser", "outputs"].startswith("5 × 3, ")  # noqa: RUF001
    for name in ("encoder.combine", "denoiser", "types"):
        count = sum(p.numel() for p in network.get_submodule(name).parameters())
        assert shown.loc[name, "parameters_each"] == count
        assert f"{count:,} parameters" in caption(tmp_path, "1")
    total = sum(p.numel() for p in network.parameters())
    assert (shown["repeats"] * shown["parameters_each"]).sum() == total


def test_figure_s1_has_the_parts_of_each_encoder(data, tmp_path):
    shown = figure("S1", data, tmp_path)
    kinds = shown.groupby("model", sort=False)["kind"].agg(list)
    assert kinds["DP-CDVAE"] == ["DimeNetPlusPlus", kinds["DP-CDVAE"][-1]]
    assert set(kinds["DP-CDVAE+N_a"]) - set(kinds["DP-CDVAE"]) == {"AtomCountEncoder"}
    assert set(kinds["DP-CDVAE+GINE"]) - set(kinds["DP-CDVAE"]) == {"Gine"}
    assert len(kinds["DP-CDVAE+N_a+GINE"]) == 4
    encoder = variant("dp_cdvae_na_gine").encoder
    own = shown[shown["model"] == "DP-CDVAE+N_a+GINE"]
    assert own["parameters_each"].sum() == sum(p.numel() for p in encoder.parameters())
    files = {"models": few(data, "models", "dp_cdvae")}
    assert set(figure("S1", data, tmp_path, files=files)["model"]) == {"DP-CDVAE"}
    absent = "Not run: DP-CDVAE+N_a, DP-CDVAE+GINE and DP-CDVAE+N_a+GINE."
    assert absent in caption(tmp_path, "S1")


def test_no_words_of_a_scheme_overlap(data):
    paths = {
        model: folder / "architecture.json"
        for model, folder in data[0]["models"]["perovskites"].items()
    }
    with figure_style():
        for drawing in (scheme_figure(paths), encoders_figure(paths, VARIANTS)):
            canvas = FigureCanvasAgg(drawing.figure)
            canvas.draw()
            (ax,) = drawing.figure.axes
            texts = [t for t in ax.texts if t.get_text() and not isinstance(t, Annotation)]
            boxes = [(t.get_text(), t.get_window_extent().padded(-1)) for t in texts]
            for (one, box), (other, beside) in combinations(boxes, 2):
                assert not box.overlaps(beside), (one, other)
            assert all(drawing.figure.bbox.padded(1).contains(*b.min) for _, b in boxes)
            assert all(drawing.figure.bbox.padded(1).contains(*b.max) for _, b in boxes)


def test_figure_2_has_the_trajectory(data, tmp_path):
    shown = figure("2", data, tmp_path)
    assert shown["step"].unique().tolist() == [20, 16, 12, 8, 4, 0]
    assert len(shown) == 6 * 5
    first = shown[shown["step"] == 20]
    assert first["atomic_number"].tolist() == NUMBERS
    places = np.reshape(POSITIONS, (-1, 3)) + np.array([1.3, 0, 0])
    np.testing.assert_allclose(first[["x_unwrapped", "y_unwrapped", "z_unwrapped"]], places)
    np.testing.assert_allclose(first[["x", "y", "z"]], places % 1, atol=1e-9)
    text = caption(tmp_path, "2")
    assert "DP-CDVAE" in text
    assert "perovskite_BaTiO3" in text


def test_a_short_or_broken_trajectory_is_drawn(data, tmp_path):
    path = tmp_path / "short.parquet"
    traced(1).to_parquet(path)
    assert figure("2", data, tmp_path, trace=path)["step"].unique().tolist() == [1, 0]
    table = traced(5)
    table["unwrapped"] = [np.full(15, np.nan), *table["unwrapped"][1:]]
    table["lattice"] = [LATTICE, [np.inf] * 9, *table["lattice"][2:]]
    table.to_parquet(path)
    assert len(figure("2", data, tmp_path, trace=path)) == 6 * 5
    assert caption(tmp_path, "2").count(">not finite<") == 2


@given(
    start=st.tuples(*[st.floats(-0.9, 0.9)] * 2), end=st.tuples(*[st.floats(-50, 50)] * 2)
)  # fmt: skip
def test_what_is_far_is_drawn_at_the_rim_on_its_way(start, end):
    start, end = np.array([start]), np.array([end])
    drawn = _drawn_near(start, end, np.ones(1))
    assert (np.abs(drawn) <= 1 + 1e-9).all()
    if (np.abs(end) <= 1).all():
        np.testing.assert_allclose(drawn, end, atol=1e-12)
    else:
        np.testing.assert_allclose(np.abs(drawn).max(), 1)
    way, whole = (drawn - start)[0], (end - start)[0]
    assert abs(way[0] * whole[1] - way[1] * whole[0]) < 1e-6 * max(1, np.abs(whole).max())
    assert way @ whole >= -1e-9


def test_figure_of_energies_by_hand(data, tmp_path):
    shown = figure("S2", data, tmp_path)
    one = shown[shown["model"] == "DP-CDVAE"].set_index("below_mev")["crystals"]
    # 70, 100 and 100 lie from 64 to 128, 300 from 256 to 512; one crystal gains 10, one lost 9,000.
    assert one[one > 0].to_dict() == {0: 1, 128: 3, 512: 1, np.inf: 1}
    assert shown["percent"].sum() == pytest.approx(200, abs=0.05)
    rms = np.sqrt(np.mean(np.array([70, 100, 100, 300, -10, 9000]) ** 2.0))
    text = caption(tmp_path, "S2")
    assert "mode 64\N{EN DASH}128" in text
    assert f"rms {rms:,.1f}" in text
    assert "n = 6" in text
    assert "Not run: CDVAE+Fourier." in text
    assert (np.diff(EDGES[2:-1]) == EDGES[2:-2]).all()


def test_models_whose_crystals_never_relaxed_have_an_empty_panel(data, tmp_path):
    path = tmp_path / "cdvae.parquet"
    for table in (evaluated("relaxed", 0), evaluated("relaxed", 2, converged=False),
                  evaluated("relaxed", 2, energy_after=np.nan)):  # fmt: skip
        table.to_parquet(path)
        shown = figure("S2", data, tmp_path, files={"relaxed": {"carbon_24": {"cdvae": path}}})
        assert (shown[["crystals", "percent"]] == 0).all(axis=None)
        assert "CDVAE, n = 0" in caption(tmp_path, "S2")


def test_figure_of_crystals_has_the_first_of_each_model(data, tmp_path):
    shown = figure("crystals", data, tmp_path)
    assert shown["model"].unique().tolist() == [MODELS[model] for model in SAMPLED]
    assert (shown.groupby("model")["item"].agg(list).map(str) == "[0, 1, 2, 3, 4, 5]").all()
    text = caption(tmp_path, "crystals")
    assert text.count(">BaTiO₃<") == 18
    assert text.count(">not neutral<") == 9
    assert "Not run: CDVAE, CDVAE+Fourier, DP-CDVAE+N_a," in text


def test_crystals_that_are_nonsense_are_shown_as_such(data, tmp_path):
    broken = [
        {"lattice": [np.nan] * 9}, {"positions": [np.nan] * 15}, {"lattice": [0.0] * 9},
        {"lattice": [1e30] * 9}, {"numbers": [118, 0, 200, 1, -1]},
        {"numbers": [], "positions": []},
    ]  # fmt: skip
    samples, generated = tmp_path / "samples.parquet", tmp_path / "generated.parquet"
    rows = pd.concat([sampled(1, **columns) for columns in broken]).assign(item=range(6))
    rows.to_parquet(samples)
    evaluated("generated", 6, finite=False, valid_structure=False).to_parquet(generated)
    files = {kind: {"perovskites": {"ours": path}}
             for kind, path in (("samples", samples), ("generated", generated))}  # fmt: skip
    assert len(figure("crystals", data, tmp_path, files=files)) == 6
    text = caption(tmp_path, "crystals")
    assert "too large to draw" in text
    assert "Not run: FTCP, CDVAE," in text


def test_samples_and_measures_must_belong_together(data, tmp_path):
    path = tmp_path / "generated.parquet"
    evaluated("generated", 8, item=np.arange(8) + 3).to_parquet(path)
    files = data[0] | {"generated": {"perovskites": {"ours": path}}}
    with pytest.raises(InputError, match="is not about the crystals in"):
        figure("crystals", data, tmp_path, files=files)


def test_two_data_sets_share_the_columns(data, tmp_path):
    files = {
        kind: {**data[0][kind], "carbon_24": few(data, kind)["perovskites"]}
        for kind in ("samples", "generated")
    }
    shown = figure("crystals", data, tmp_path, files=files)
    assert shown.groupby("crystals_of").size().to_dict() == {"carbon_24": 3, "perovskites": 9}
    assert set(shown["dataset"]) == {"perovskites and carbon_24"}


def test_figure_of_steps_by_hand(data, tmp_path):
    shown = figure("steps", data, tmp_path).set_index(["model", "evaluations"])
    assert len(shown) == 4
    assert shown.loc[("DP-CDVAE", 1000), "match_percent"] == 75
    assert shown.loc[("DP-CDVAE", 1000), "rms_percent"] == 3
    assert shown.loc[("Ours", 50), "match_percent"] == 75
    assert shown.loc[("Ours", 20), ["match_percent", "rms_percent"]].tolist() == [25, 1]
    low, high = shown.loc[("Ours", 20), ["match_percent_low", "match_percent_high"]]
    assert 0 <= low < 25 < high <= 100
    one = {
        "reconstructed": {"perovskites": {"ours": data[0]["reconstructed"]["perovskites"]["ours"]}}
    }
    figure("steps", data, tmp_path, files=one)
    assert "Not run: DP-CDVAE." in caption(tmp_path, "steps")


def test_steps_without_a_match_have_no_distance(data, tmp_path):
    path = tmp_path / "ours.parquet"
    missed = {"matched": False, "matched_default": False, "rms": np.nan, "rms_default": np.nan}
    evaluated("reconstructed", 3, **missed).to_parquet(path)
    shown = figure(
        "steps", data, tmp_path, files={"reconstructed": {"perovskites": {"ours": path}}}
    )
    assert shown["match_percent"].tolist() == [0]
    assert shown["rms_percent"].isna().all()


@pytest.mark.parametrize("name", FIGURES)
def test_without_any_model_there_is_no_figure(name, data, tmp_path):
    with pytest.raises(InputError, match=r"none|not given"):
        figure(name, data, tmp_path, files={}, trace=None)
    with pytest.raises(InputError, match="no figure S9 of the generation study"):
        figure("S9", data, tmp_path)


def test_damaged_files_are_named(data, tmp_path):
    path = tmp_path / "perovskites" / "dp_cdvae"
    path.mkdir(parents=True)
    broken = path / "broken.parquet"
    broken.write_bytes(b"no table")
    ours = {"perovskites": {"ours": broken}}
    calls = {
        "2": {"trace": broken},
        "S2": {"files": {"relaxed": ours}},
        "steps": {"files": {"reconstructed": ours}},
        "crystals": {"files": {"samples": ours, "generated": ours}},
    }
    for name, changes in calls.items():
        with pytest.raises(InputError, match=r"broken\.parquet"):
            figure(name, data, tmp_path, **changes)
    (path / "architecture.json").write_text("[]", "utf-8")
    for name in ("1", "S1"):
        with pytest.raises(InputError, match="does not describe an encoder"):
            figure(name, data, tmp_path, files={"models": {"perovskites": {"dp_cdvae": path}}})


@pytest.mark.parametrize(
    "columns",
    [{"unwrapped": [[0.1]] * 21}, {"generator": "other"}, {"numbers": [[8]] * 21}, {"time": None}],
)
def test_a_broken_trajectory_is_named(columns, data, tmp_path):
    path = tmp_path / "trajectory.parquet"
    traced().assign(**columns).to_parquet(path)
    with pytest.raises(InputError, match=r"trajectory\.parquet"):
        figure("2", data, tmp_path, trace=path)


def test_atoms_on_faces_edges_and_corners_have_copies():
    positions = np.array([[0, 0, 0], [0.5, 0, 0], [0.5, 0.5, 0], [0.5, 0.5, 0.5], [0.99, 0.5, 0.5]])
    atom, places = _with_copies(positions)
    assert np.bincount(atom).tolist() == [8, 4, 2, 1, 2]
    assert sorted(map(tuple, places[atom == 2])) == [(0.5, 0.5, 0), (0.5, 0.5, 1)]
    np.testing.assert_allclose(places[atom == 4][:, 0], [0.99, -0.01])


@given(st.lists(st.tuples(*[st.floats(-3, 3)] * 3), max_size=4))
def test_copies_are_lattice_translations_on_the_cell(positions):
    positions = np.array(positions).reshape(-1, 3)
    atom, places = _with_copies(positions)
    moved = places - positions[atom]
    np.testing.assert_allclose(moved, moved.round(), atol=1e-9)
    assert (np.abs(places - 0.5) < 0.54).all()
    assert set(atom) == set(range(len(positions)))


def test_projection_keeps_lengths_and_handedness():
    axes = project(np.eye(3))
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(axes) == pytest.approx(1)
    assert axes[0, 0] > 0.9  # a to the right
    assert axes[2, 1] > 0.9  # c up
    assert axes[1, 2] < -0.9  # b away


def test_a_drawing_holds_all_atoms_of_its_crystal():
    cell = ShownCell(
        np.array([[3.0, 0, 0], [-1.5, 2.6, 0], [0.4, 0.3, 9.0]]),
        np.array([[0.0, 0, 0], [0.3, 0.6, 0.5]]),
        np.array([6, 55]),
    )
    assert obstacle(cell) == ""
    ax = Figure().add_subplot()
    draw_crystal(ax, cell)
    left, right, low, high = *ax.get_xlim(), *ax.get_ylim()
    assert right - left == pytest.approx(high - low)
    places = project(np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
                     @ cell.lattice)  # fmt: skip
    assert ((places[:, 0] > left) & (places[:, 0] < right)).all()
    assert ((places[:, 1] > low) & (places[:, 1] < high)).all()
