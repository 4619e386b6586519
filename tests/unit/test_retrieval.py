"""Which crystal made a pattern: what networks answer, against brute force and cases by hand."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from diffractory.augment.spot_steps import augment_spots
from diffractory.evaluation.ranking import Best
from diffractory.evaluation.retrieval import (
    DESCRIBED,
    GALLERIES,
    TWIN,
    checked_rank,
    evaluate_retrieval,
)
from diffractory.simulate.crystal import Crystal
from diffractory.simulate.layers import layer_patterns
from diffractory.store import InputError, read_patterns, write_patterns
from diffractory.store.provenance import read_record
from diffractory.training.crystals import layers_of
from diffractory.training.retrieval_networks import (
    NETWORKS,
    embed_patterns,
    embed_structures,
    load_retrieval_network,
)

HARDWARE = {"device": "cpu", "precision": "32-true", "threads": 1}
SIMULATION = {
    "radiation": "x_ray", "wavelength": 0.5, "debye_waller": 0.5, "q_max": 1.2,
    "min_intensity": 1e-6, "min_points": 4, "max_points": 60,
}  # fmt: skip
NETWORK = {
    "width": 32, "n_layers": 1, "n_heads": 4, "max_length": 40, "dropout": 0.0, "q_max": 1.2,
    "q_step": 0.02,
}  # fmt: skip
CONDITIONS = {
    "rotated": [{"rotation": {"angle": [0.0, 360.0]}}],
    "missing": [{"missing_spots": {"fraction": 0.3}}],
}
FEW_MISSING = [{"missing_spots": {"fraction": 0.1}}]
SETTINGS = {"conditions": CONDITIONS, "candidates": 5}
COUNT, SEED = 40, 3
NO_PATTERN = "layer_2"
TWINS = ("layer_4", "layer_6")
"""Each is the other one upside down, which a projection does not show."""
COPIED = "layer_8"
"""One of its distractors is the layer itself; another is strained by more than a twin may be."""


def crystals():
    """Return layers of four atoms at random places of hexagonal cells; those of `TWINS` are one."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(COUNT):
        a = rng.uniform(2.8, 4.2)
        cell = np.array([[a, 0, 0], [-a / 2, a * np.sqrt(3) / 2, 0], [0, 0, 20.0]])
        positions = rng.random((4, 3)) * [1, 1, 0.1] + [0, 0, 0.45]
        made.append(Crystal(cell, positions, rng.integers(20, 40, 4)))
    first, second = (int(name.removeprefix("layer_")) for name in TWINS)
    there = made[first]
    upside_down = there.positions * [1, 1, -1] + [0, 0, 1]
    made[second] = Crystal(there.cell, upside_down, there.numbers)
    return made


def write_data(folder, *, split):
    """Write layers, the patterns of all but one in reverse order, distractors, and a network."""
    some, ids = crystals(), [f"layer_{i}" for i in range(COUNT)]
    layers = pd.DataFrame({"material_id": ids, "structure": [c.to_json() for c in some]})
    layers["split"] = split
    for name in DESCRIBED:
        layers[name] = [f"{name} of {i}" for i in ids]
    layers.to_parquet(folder / "layers.parquet")
    made = [i for i in reversed(range(COUNT)) if ids[i] != NO_PATTERN]
    patterns = layer_patterns([ids[i] for i in made], [some[i] for i in made], SIMULATION)
    write_patterns(folder / "patterns", [patterns])
    rng = np.random.default_rng(1)
    distractors = {}
    for name, crystal in zip(ids[::2], some[::2], strict=True):
        moved = crystal.positions + rng.uniform(-0.05, 0.05, (4, 3)) * [1, 1, 0]
        distractors[f"{name}~0"] = Crystal(crystal.cell, moved, crystal.numbers)
    copied = some[ids.index(COPIED)]
    distractors[f"{COPIED}~1"] = copied
    strained = copied.cell * [[1.015], [1.015], [1]]
    distractors[f"{COPIED}~2"] = Crystal(strained, copied.positions, copied.numbers)
    columns = {
        "material_id": list(distractors),
        "structure": [c.to_json() for c in distractors.values()],
    }
    pd.DataFrame(columns).to_parquet(folder / "distractors.parquet")
    torch.manual_seed(0)
    network = NETWORKS["dd2d"](**NETWORK)
    model = folder / "dd2d"
    model.mkdir()
    hparams = {"model": "dd2d", "network": NETWORK}
    (model / "hparams.json").write_text(json.dumps(hparams))
    save_file(network.state_dict(), model / "model.safetensors")
    return folder


def evaluate(folder, name="predictions", settings=SETTINGS):
    inputs = [folder / n for n in ("dd2d", "layers.parquet", "patterns", "distractors.parquet")]
    outputs = [folder / f"{name}.parquet", folder / f"{name}.run.json"]
    evaluate_retrieval(*inputs, *outputs, settings, SIMULATION, HARDWARE, SEED)
    return pd.read_parquet(outputs[0])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return write_data(folder, split=np.resize(["test", "train"], COUNT))


@pytest.fixture(scope="module")
def answers(data):
    return evaluate(data)


@pytest.fixture(scope="module")
def all_checked(data):
    """Every crystal of the gallery is a candidate."""
    settings = {"conditions": {"few_missing": FEW_MISSING}, "candidates": 1000}
    return evaluate(data, "all_checked", settings)


ASKED = [f"layer_{i}" for i in reversed(range(0, COUNT, 2)) if f"layer_{i}" != NO_PATTERN]
"""Layers of the test with a pattern, in the order of the store."""


def queries_of(data):
    patterns = read_patterns(data / "patterns")
    return patterns.select(np.flatnonzero(np.isin(patterns.material_id, ASKED)))


def part_of(table, condition, gallery):
    part = table[(table["condition"] == condition) & (table["gallery"] == gallery)]
    return part.reset_index(drop=True)


def test_each_pattern_is_asked_about_in_every_condition_and_gallery(data, answers):
    assert set(answers) == {
        "condition", "gallery", "gallery_size", "material_id", *DESCRIBED, "rank", "candidates",
        "scores", "r_factors", "checked_rank", "twins",
    }  # fmt: skip
    assert len(answers) == 3 * len(GALLERIES) * len(ASKED)
    for condition in ("as_simulated", *CONDITIONS):
        for gallery, size in zip(GALLERIES, (19, 19 + 22), strict=True):
            part = part_of(answers, condition, gallery)
            assert part["material_id"].tolist() == ASKED
            assert part["gallery_size"].tolist() == [size] * 19
            assert part["rank"].between(1, size).all()
            for name in ("candidates", "scores", "r_factors"):
                assert set(map(len, part[name])) == {5}
    for name in DESCRIBED:
        assert answers[name].tolist() == [f"{name} of {i}" for i in answers["material_id"]]
    facts = read_record(data / "predictions.run.json")["facts"]
    assert (facts["patterns"], facts["distractors"]) == (19, 22)


@pytest.mark.parametrize("gallery", GALLERIES)
@pytest.mark.parametrize("condition", ["as_simulated", *CONDITIONS])
def test_ranks_and_candidates_are_those_of_brute_force(data, answers, condition, gallery):
    """By the cosine of every pattern and crystal; equal ones may stand in any order."""
    network = load_retrieval_network(data / "dd2d")
    layers = pd.read_parquet(data / "layers.parquet").set_index("material_id").loc[ASKED]
    parts = [layers.reset_index()]
    if gallery == "distractors":
        parts.append(pd.read_parquet(data / "distractors.parquet"))
    crystals = pd.concat(parts)[["material_id", "structure"]]
    known = embed_structures(network, layers_of(crystals), HARDWARE).astype(float)
    place = {name: i for i, name in enumerate(crystals["material_id"])}
    seen = augment_spots(queries_of(data), CONDITIONS.get(condition, []), SEED)[0]
    asked = embed_patterns(network, seen, HARDWARE).astype(float)
    told = 0
    for i, row in enumerate(part_of(answers, condition, gallery).itertuples()):
        scores = [sum(a * b for a, b in zip(asked[i], one, strict=True)) for one in known]
        truth = scores[place[row.material_id]]
        lowest, highest = (1 + sum(s > truth + e for s in scores) for e in (1e-6, -1e-6))
        assert lowest <= row.rank <= highest - 1
        told += lowest == highest - 1
        assert row.scores == pytest.approx(sorted(scores, reverse=True)[:5], abs=1e-5)
        found = [scores[place[name]] for name in row.candidates]
        assert row.scores == pytest.approx(found, abs=1e-5)
        assert len(set(row.candidates)) == 5
    assert told > 12
    assert part_of(answers, condition, gallery)["rank"].nunique() > 5


def test_conditions_change_what_is_asked(answers):
    scores = [
        np.stack(part_of(answers, condition, "test")["scores"])
        for condition in ("as_simulated", *CONDITIONS)
    ]
    assert min(np.abs(scores[i] - scores[j]).max() for i, j in ((0, 1), (0, 2), (1, 2))) > 1e-3


def test_the_gallery_is_all_layers_with_a_pattern_and_then_the_distractors(data, all_checked):
    """Also those distractors whose own layer has no pattern."""
    distractors = pd.read_parquet(data / "distractors.parquet")["material_id"]
    for gallery, more in zip(GALLERIES, ([], distractors), strict=True):
        for candidates in part_of(all_checked, "as_simulated", gallery)["candidates"]:
            assert sorted(candidates) == sorted([*ASKED, *more])


def test_the_truth_explains_its_pattern(all_checked):
    """Nothing else of the test does, but its twins, which may come before it."""
    still = all_checked[all_checked["condition"] == "as_simulated"]
    for row in still.itertuples():
        is_truth = row.candidates == row.material_id
        assert row.r_factors[is_truth] == pytest.approx([0], abs=1e-4)
        assert 1 <= row.checked_rank <= 1 + row.twins
        if row.gallery == "test":
            assert (row.r_factors[~is_truth] < TWIN).sum() == row.twins
    assert (still["rank"] > still["checked_rank"]).any()


def test_r_factors_are_of_what_is_seen(data, all_checked):
    """Of amplitudes: spots that are seen agree, and the others are missed as they are."""
    queries = queries_of(data)
    seen = augment_spots(queries, FEW_MISSING, SEED)[0]
    for i, row in enumerate(part_of(all_checked, "few_missing", "test").itertuples()):
        whole, part = (
            np.sqrt(p.intensity[p.offsets[i] : p.offsets[i + 1]].astype(float))
            for p in (queries, seen)
        )
        expected = (whole.sum() - part.sum()) / part.sum()
        found = row.r_factors[row.candidates == row.material_id]
        assert found == pytest.approx([expected], rel=1e-3)
        assert expected > 0.01


def test_twins_are_others_with_the_very_pattern(answers):
    twins = dict.fromkeys(TWINS, 1)
    for gallery, known in (("test", twins), ("distractors", twins | {COPIED: 1})):
        for condition in ("as_simulated", *CONDITIONS):
            part = part_of(answers, condition, gallery)
            assert part["twins"].tolist() == [known.get(name, 0) for name in ASKED]


def test_rank_after_the_check_by_hand():
    """The truth of query i is place i; in the second it is no candidate, in the last none fits."""
    place = np.array([[2, 0, 1], [0, 2, 3], [2, 1, 0], [0, 1, 3]])
    r_factor = np.array([[0.5, 0.1, 0.3], [0.1, 0.2, 0.3], [0.2, 0.2, 0.1], [0.4, np.inf, np.inf]])
    best = Best(place, np.zeros((4, 3), np.float32), np.array([2, 7, 1, 3]))
    assert checked_rank(best, r_factor).tolist() == [1, 7, 3, 3]


def test_a_test_without_patterns_is_refused(tmp_path):
    split = np.full(COUNT, "train")
    split[int(NO_PATTERN.removeprefix("layer_"))] = "test"
    write_data(tmp_path, split=split)
    with pytest.raises(InputError, match=r"no pattern of .*patterns belongs to the test part"):
        evaluate(tmp_path)
    assert not (tmp_path / "predictions.parquet").exists()
