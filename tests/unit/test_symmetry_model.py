"""Trained models at the microscope say what they say in evaluation; broken ones are refused."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import test_network_training as t
import torch

from diffractory.evaluation.predictions import evaluate_network, evaluate_random_forest
from diffractory.experiment.preparing import SpotLists
from diffractory.experiment.symmetry_model import SymmetryModel, select
from diffractory.store import CRYSTAL_SYSTEMS, InputError, SpotReader, read_patterns
from diffractory.training.conventions import conventions
from diffractory.training.random_forest import train_random_forest

NAMES = ["pe_ag_gmoe", "mvof_ml", "ours", "random_forest"]
FOREST = {"radial_bins": 8, "angular_orders": 4, "intensity_power": 0.25, "n_estimators": 5,
          "min_samples_leaf": 1}  # fmt: skip
LIKE_TRAINING = {"energy": 2e5, "thickness": None, "q_max": 1.4, "direct_beam": False}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return t.write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def models(data, tmp_path_factory):
    """Return a folder with each model, trained for a moment."""
    folder = tmp_path_factory.mktemp("models")
    for name in NAMES[:-1]:
        t.train(data, folder, name, epochs=1)
    inputs = data / "patterns", data / "structures.parquet"
    train_random_forest(*inputs, folder / "random_forest", FOREST, 1.5, 1, 2)
    return folder


@pytest.fixture
def model(models, tmp_path):
    """Return the folder of a network that a test may change."""
    return shutil.copytree(models / "ours", tmp_path / "ours")


def edit(model, /, **changes):
    hparams = json.loads((model / "hparams.json").read_text()) | changes
    (model / "hparams.json").write_text(json.dumps(hparams))


def spots_of(data, patterns):
    """Return the spot lists of patterns of the store."""
    reader = SpotReader(data / "patterns")
    values = reader.read(0, len(reader.offsets) - 1)
    return select(SpotLists(reader.offsets, *values.T.copy()), np.asarray(patterns))


def with_spots(one, *columns):
    """Return a pattern with more spots: q_x, q_y and intensity."""
    pairs = zip(one[1:], columns, strict=True)
    more = [np.append(old, new).astype(np.float32) for old, new in pairs]
    return SpotLists(np.array([0, len(more[0])]), *more)


def same(a, b, exactly=False):
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=0 if exactly else 1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_models_say_what_they_say_in_evaluation(data, models, tmp_path, name):
    paths = models / name, data / "patterns", data / "structures.parquet"
    files = tmp_path / "predictions.parquet", tmp_path / "predictions.run.json"
    if name == "random_forest":
        evaluate_random_forest(*paths, *files, 1)
    else:
        evaluate_network(*paths, *files, t.HARDWARE, 1)
    table = pd.read_parquet(files[0])
    model = SymmetryModel.load(models / name)
    assert model.kind == name
    said = model.predict(spots_of(data, table["pattern"]))
    expected = table[[f"probability_{system}" for system in CRYSTAL_SYSTEMS]]
    np.testing.assert_allclose(said.crystal_system, expected, atol=1e-6)
    assert [a.dtype for a in said] == [np.float32, np.int16, np.float32]
    if name == "mvof_ml":
        assert not said.space_group.any()
        assert not said.space_group_probability.any()
        return
    assert said.space_group[:, 0].tolist() == table["predicted_space_group"].to_list()
    np.testing.assert_allclose(
        said.space_group_probability[:, 0], table["probability_space_group"], atol=1e-6
    )
    assert (np.diff(said.space_group_probability, axis=1) <= 0).all()
    assert all(len({*row[row > 0]}) == (row > 0).sum() for row in said.space_group)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_said_of_a_pattern_does_not_depend_on_the_others(data, models, name):
    model, some = SymmetryModel.load(models / name), np.array([190, 3, 77])
    together = model.predict(spots_of(data, range(200)))
    alone = model.predict(spots_of(data, some))
    same(alone, [values[some] for values in together])


@pytest.mark.parametrize("name", ["ours", "random_forest"])
def test_a_pattern_without_diffracted_spots_gets_nothing(data, models, name):
    model = SymmetryModel.load(models / name)
    one = spots_of(data, [5])
    n = len(one.qx)
    beam = with_spots(one, [0], [0], [0.9])._replace(offsets=np.array([0, 0, n, n + 1]))
    said = model.predict(beam)
    same([values[1:2] for values in said], model.predict(one), exactly=True)
    assert not any(values[[0, 2]].any() for values in said)


def test_spots_that_training_patterns_have_not_are_left_out(data, model):
    """These have no direct beam and end at 1.3 1/angstrom or so."""
    one = spots_of(data, [5])
    extended = with_spots(one, [0.001, 1.6], [0, 0], [0.9, 0.9])
    expected = SymmetryModel.load(model).predict(one)
    same(SymmetryModel.load(model).predict(extended), expected, exactly=True)
    hparams = json.loads((model / "hparams.json").read_text())
    edit(model, patterns=hparams["patterns"] | {"direct_beam": True, "g_max": 2.0})
    other = SymmetryModel.load(model).predict(extended)
    assert np.abs(other.crystal_system - expected.crystal_system).max() > 1e-4


def test_conventions_are_those_of_the_training_patterns(data, models):
    reader = SpotReader(data / "patterns")
    values = reader.read(0, 120)  # of 24 materials of 200, the others are for other purposes
    g = np.hypot(values[:, 0], values[:, 1])
    for name in NAMES:
        said = json.loads((models / name / "hparams.json").read_text())["patterns"]
        assert said["energy"] == [2e5, 2e5]
        assert said["thickness"] == [200.0, 200.0]
        assert said["g_max"] == pytest.approx(g.max(), rel=1e-3)
        assert said["min_intensity"] == pytest.approx(values[g >= 0.02, 2].min(), rel=1e-3)
        assert said["direct_beam"] is False


def test_conventions_see_the_direct_beam_and_all_thicknesses(data, monkeypatch):
    patterns = read_patterns(data / "patterns", 0, 4)
    patterns.thickness[:] = 100, 300, 200, 200
    patterns.qx[patterns.offsets[:3]] = patterns.qy[patterns.offsets[:3]] = 0
    monkeypatch.setattr("diffractory.training.conventions.read_selected", lambda *_: [patterns])
    said = conventions(data / "patterns", np.arange(4))
    assert said["thickness"] == [100.0, 300.0]
    assert said["direct_beam"] is True


@pytest.mark.parametrize(
    ("unlike", "words"),
    [
        ({}, None),
        ({"energy": 201e3, "thickness": 203}, None),
        ({"energy": None}, "does not tell its voltage: the model is for 200 kV"),
        ({"energy": 3e5}, "trained for 200 kV, and the scan has 300 kV"),
        ({"thickness": 500}, "trained for 200 angstrom of thickness, and the specimen has 500"),
        ({"q_max": 0.6}, "detector reaches 0.60"),
    ],
)
def test_a_model_for_something_else_warns_in_a_line(models, unlike, words):
    lines = SymmetryModel.load(models / "ours").warnings(**LIKE_TRAINING | unlike)
    if words is None:
        assert lines == []
    else:
        (line,) = lines
        assert words in line
        assert "\n" not in line


def test_a_hidden_direct_beam_and_an_old_model_warn(model):
    hparams = json.loads((model / "hparams.json").read_text())
    edit(model, patterns=hparams["patterns"] | {"direct_beam": True, "thickness": [100, 300]})
    found = SymmetryModel.load(model)
    (line,) = found.warnings(**LIKE_TRAINING)
    assert "trained with the direct beam" in line
    assert "200 kV, 100 to 300 angstrom" in found.trained_on
    del hparams["patterns"]
    (model / "hparams.json").write_text(json.dumps(hparams))
    old = SymmetryModel.load(model)
    (line,) = old.warnings(**LIKE_TRAINING)
    assert "does not say what patterns it was trained on" in line


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (shutil.rmtree, "has no hparams.json and no model.safetensors"),
        (lambda m: (m / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda m: (m / "hparams.json").write_text("{"), "hparams.json is broken"),
        (lambda m: (m / "hparams.json").write_text("[]"), "hparams.json is broken"),
        (lambda m: (m / "hparams.json").write_text("{}"), "holds no known model"),
        (lambda m: edit(m, model="dd2d"), "holds dd2d, not a model of the symmetry study"),
        (lambda m: edit(m, model=["ours"]), "not a model of the symmetry study"),
        (lambda m: edit(m, network={"dim": 64, "colour": "red"}), "unexpected keyword"),
        (lambda m: edit(m, network={"dim": 8}), "size mismatch"),
        (lambda m: edit(m, model="mvof_ml"), "does not hold a trained network"),
        (lambda m: edit(m, descriptor={}), "is broken"),
        (lambda m: truncate(m / "model.safetensors"), "does not hold a trained network"),
        (lambda m: edit(m, max_spots=None), "is broken"),
        (lambda m: edit(m, patterns=["?"]), "is broken"),
    ],
)
def test_a_folder_that_holds_no_model_is_refused_in_a_sentence(model, damage, words):
    damage(model)
    with pytest.raises(InputError, match=words) as refusal:
        SymmetryModel.load(model)
    assert str(model) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused(models):
    with pytest.raises(InputError, match="no device 'cuda'"):
        SymmetryModel.load(models / "ours", "cuda")
