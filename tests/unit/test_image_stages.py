"""Clean images of augmented crystals, and what a detector makes of them: the two stages."""

import json

import numpy as np
import pandas as pd
import pytest
from phonopy import Phonopy
from phonopy.structure.atoms import PhonopyAtoms

from diffractory.augment.detection import detect_images
from diffractory.augment.mote2 import primitive_cell
from diffractory.augment.phonons import write_phonons
from diffractory.augment.samples import _make_parts, planned, simulate_images
from diffractory.store import InputError
from diffractory.store.images import ImageReader, write_images

KINDS = {
    "pristine_2h": {"phase": "2h", "augment": []},
    "vacancies_2h": {"phase": "2h", "augment": [{"vacancies": {"fraction": [0.1, 0.2]}}]},
    "phonons_1t": {
        "phase": "1t",
        "augment": [{"phonon": {"q_points": ["S"], "amplitude": [0.1, 0.3]}}],
    },
    "interpolated": {"phase": "2h", "mix": "1t", "augment": []},
    "transforming": {
        "phase": "2h",
        "augment": [{"morph": {"to": "1t", "fraction": [0.2, 0.8]}}],
    },
}
SETTINGS = {
    "device": "cpu",
    "q_max": 0.6,
    "q_step": 0.04,
    "oversampling": 2,
    "parametrization": "lobato",
    "debye_waller": 0.3,
    "cells": [8, 5],
    "cell_spread": 0.2,
    "every": [{"thermal": {"debye_waller": [0.0, 0.6]}}],
    "counts": {"train": 2, "validation": 1, "test": 2},
    "kinds": KINDS,
}
DETECTOR = {
    "beam_stop": 0.15,
    "steps": [{"point_spread": 0.05}, {"relative_noise": [0.0, 0.5]}, {"poisson": [1e4, 1e6]}],
}


@pytest.fixture(scope="module")
def phonons(tmp_path_factory):
    """Return files of both phases, whose atoms hang on springs of their own."""
    folder = tmp_path_factory.mktemp("phonons")
    for phase in ("2h", "1t"):
        cell = primitive_cell(phase)
        found = Phonopy(
            PhonopyAtoms(numbers=cell.numbers, cell=cell.cell, scaled_positions=cell.positions),
            np.diag([2, 2, 1]),
            primitive_matrix="P",
        )
        n = len(found.supercell)
        found.force_constants = np.eye(n)[:, :, None, None] * np.diag([1.0, 2.0, 3.0])
        write_phonons(folder / f"{phase}.yaml", found)
    return {phase: folder / f"{phase}.yaml" for phase in ("2h", "1t")}


def simulate(phonons, folder, shards=1, threads=1, seed=3, **settings):
    """Simulate all shards; return the paths of stores and tables."""
    paths = []
    for shard in range(shards):
        start = folder / f"{shard}-of-{shards}"
        store, samples = start.with_suffix(".zarr"), start.with_suffix(".samples.parquet")
        run = start.with_suffix(".run.json")
        simulate_images(
            phonons, store, samples, run, shard, shards, SETTINGS | settings, seed, threads
        )
        paths.append((store, samples))
    return paths


def images_of(paths):
    readers = [ImageReader(store) for store, _ in paths]
    images = np.concatenate([reader.read(np.arange(reader.shape[0])) for reader in readers])
    return images, pd.concat([pd.read_parquet(table) for _, table in paths], ignore_index=True)


@pytest.fixture(scope="module")
def simulated(phonons, tmp_path_factory):
    return simulate(phonons, tmp_path_factory.mktemp("images"))


def detect(paths, folder, seed=3, threads=1, **settings):
    store, samples = folder / "seen", folder / "seen.samples.parquet"
    detect_images(
        [path for path, _ in paths],
        [path for _, path in paths],
        store,
        samples,
        folder / "seen.run.json",
        DETECTOR | settings,
        seed,
        threads,
    )
    return ImageReader(store), pd.read_parquet(samples)


def test_images_do_not_depend_on_shards_and_processes(phonons, simulated, tmp_path):
    images, table = images_of(simulated)
    others, other_table = images_of(simulate(phonons, tmp_path, shards=3, threads=2))
    assert len(images) == 25
    assert (images == others).all()
    pd.testing.assert_frame_equal(table, other_table)


def test_images_of_a_kind_do_not_depend_on_the_other_kinds_or_counts(phonons, simulated, tmp_path):
    images, table = images_of(simulated)
    some = {"pristine_2h": KINDS["pristine_2h"]}
    alone, of_alone = images_of(
        simulate(phonons, tmp_path, kinds=some, counts={"train": 1, "test": 1})
    )
    rows = [list(table["sample"]).index(sample) for sample in of_alone["sample"]]
    assert (images[rows] == alone).all()


def test_no_test_image_shares_a_random_structure_with_training(simulated):
    images, table = images_of(simulated)
    assert table["sample"].is_unique
    assert table["drawn"].is_unique
    test = (table["split"] == "test").to_numpy()
    for kind in KINDS:
        of_kind = (table["kind"] == kind).to_numpy()
        seen, new = images[of_kind & ~test], images[of_kind & test]
        # Crystals of one kind have peaks at the same places; their heights and all between differ.
        differ = (seen[:, None] != new[None]).mean(axis=(2, 3))
        assert differ.min() > 0.9


def test_vacancies_are_not_there(phonons):
    common = (tuple(phonons.items()), SETTINGS, 3)
    for number in range(5):
        ((_, crystal),), drawn = _make_parts(
            (f"train/vacancies_2h/{number}", "vacancies_2h"), common
        )
        drawn = json.loads(drawn)
        fraction, cells = drawn["2h"][0]["fraction"], np.prod(drawn["cells"])
        assert 0.1 <= fraction <= 0.2
        assert (crystal.numbers == 42).sum() == 2 * cells - round(fraction * 2 * cells)
        assert (crystal.numbers == 52).sum() == 4 * cells - round(fraction * 4 * cells)


def test_mixtures_are_sums_of_both_phases(phonons):
    parts, drawn = _make_parts(
        ("train/interpolated/0", "interpolated"), (tuple(phonons.items()), SETTINGS, 3)
    )
    weights = [weight for weight, _ in parts]
    assert sum(weights) == pytest.approx(1)
    assert json.loads(drawn)["mix"] == {"2h": weights[0], "1t": weights[1]}
    ratios = [crystal.cell[1, 1] / crystal.cell[0, 0] for _, crystal in parts]
    assert ratios[0] != pytest.approx(ratios[1], rel=1e-3)


def test_sizes_of_crystals_spread(phonons):
    common = (tuple(phonons.items()), SETTINGS | {"cells": [50, 50]}, 3)
    cells = [
        json.loads(_make_parts((f"train/pristine_2h/{n}", "pristine_2h"), common)[1])["cells"]
        for n in range(40)
    ]
    assert np.mean(cells) == pytest.approx(50, abs=5)
    assert np.std(cells) == pytest.approx(10, abs=3)


def test_plan_has_every_split_and_kind():
    table = planned(["a", "b"], {"train": 2, "test": 1})
    assert list(table["sample"]) == [
        "train/a/0", "train/a/1", "train/b/0", "train/b/1", "test/a/0", "test/b/0",
    ]  # fmt: skip


def test_detected_images_are_normalized_and_dark_behind_the_stop(simulated, tmp_path):
    reader, table = detect(simulated, tmp_path)
    images = reader.read(np.arange(25))
    q = np.hypot(*np.meshgrid(*[(np.arange(31) - 15) * 0.04] * 2))
    assert (images[:, q < 0.15] == 0).all()
    np.testing.assert_allclose(images[:, q >= 0.15].mean(axis=1), 1, rtol=2e-3)  # of 16 bits
    assert reader.reference[q >= 0.15].mean() == pytest.approx(1)
    assert (reader.pixel_size, reader.beam_stop) == (pytest.approx(0.04), 0.15)
    drawn = [json.loads(text) for text in table["drawn"]]
    assert all(set(each["detector"]) == {"relative_noise", "poisson"} for each in drawn)
    assert all("cells" in each for each in drawn)


def test_detection_does_not_depend_on_shards_and_processes(phonons, simulated, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "three").mkdir()
    shards = simulate(phonons, tmp_path, shards=3)
    one, table = detect(simulated, tmp_path / "one")
    three, other_table = detect(shards, tmp_path / "three", threads=2)
    every = np.arange(25)
    assert (one.read(every) == three.read(every)).all()
    pd.testing.assert_frame_equal(table, other_table)


def test_reference_is_the_pristine_crystal_without_noise(simulated, tmp_path):
    """At a high dose and without relative noise, a pristine crystal is close to it."""
    reader, table = detect(simulated, tmp_path, steps=[{"point_spread": 0.05}, {"poisson": 1e9}])
    pristine = reader.read(np.flatnonzero(table["kind"] == "pristine_2h"))
    transforming = reader.read(np.flatnonzero(table["kind"] == "transforming"))
    far = [np.abs(images - reader.reference).mean() for images in (pristine, transforming)]
    assert far[0] < 0.5 * far[1]


def test_image_without_electrons_is_named(simulated, tmp_path):
    with pytest.raises(InputError, match=r"nothing is left of the image .+ raise the dose"):
        detect(simulated, tmp_path, steps=[{"poisson": 1e-9}])


def test_store_gives_back_images_in_any_order(tmp_path):
    images = np.random.default_rng(0).random((1030, 3, 5)).astype(np.float32)
    attributes = {"pixel_size": 0.01, "beam_stop": 0.2}
    write_images(
        tmp_path / "store", 1030, np.split(images, [7, 600]), images[0], attributes, np.float32
    )
    reader = ImageReader(tmp_path / "store")
    wanted = np.array([1029, 0, 256, 255])
    assert reader.shape == (1030, 3, 5)
    assert (reader.read(wanted) == images[wanted]).all()
    assert len(list((tmp_path / "store/images").rglob("c/*/*/*"))) == 5  # files
