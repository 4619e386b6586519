"""What the files of the generation study may hold, and what is said of it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from diffractory.evaluation.generation import (
    COLUMNS,
    MODELS,
    chosen,
    count,
    counterpart,
    crystals_stand_in,
    evaluations,
    files_by_model,
    model_label,
    read_dataset,
    read_evaluation,
    relaxation_stand_in,
    split_kind,
)
from diffractory.evaluation.tables import heading
from diffractory.store import InputError


def evaluation(kind, n=2, **changes):
    """Return n rows of a kind of evaluation; numbers NaN, and nothing true."""
    words, truths, numbers = COLUMNS[kind]
    table = pd.DataFrame(index=range(n))
    for name in words:
        counted = name in ("item", "n_sites", "n_elements", "steps")
        table[name] = np.arange(n) if counted else ""
    table = table.assign(**dict.fromkeys(truths, False), **dict.fromkeys(numbers, np.nan))
    return table.assign(**changes)


@pytest.mark.parametrize("kind", COLUMNS)
def test_evaluations_are_read_as_they_are(kind, tmp_path):
    path = tmp_path / "ours.parquet"
    table = evaluation(kind)
    table.assign(extra=1).to_parquet(path)
    pd.testing.assert_frame_equal(read_evaluation(path, kind), table, check_like=True)
    table[:0].to_parquet(path)
    assert read_evaluation(path, kind).empty


@pytest.mark.parametrize("kind", COLUMNS)
def test_a_missing_column_or_file_is_named(kind, tmp_path):
    path = tmp_path / "ours.parquet"
    with pytest.raises(InputError, match=r"ours\.parquet is not a table"):
        read_evaluation(path, kind)
    for name in evaluation(kind):
        evaluation(kind).drop(columns=name).to_parquet(path)
        with pytest.raises(InputError, match=name):
            read_evaluation(path, kind)


def test_what_is_infinite_is_no_number(tmp_path):
    path = tmp_path / "ours.parquet"
    evaluation("generated", density=[np.inf, 2.0]).to_parquet(path)
    density = read_evaluation(path, "generated")["density"]
    assert np.isnan(density[0])
    assert density[1] == 2


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("reconstructed", {"matched": True}, "matched without rms"),
        ("reconstructed", {"rms": 0.1}, "matched without rms"),
        ("reconstructed", {"matched_default": True}, "matched_default without rms_default"),
        ("relaxed", {"matched": [True, False]}, "matched without rms"),
        ("generated", {"unique": 1}, "unique that is not true or false"),
        ("generated", {"density": "heavy"}, "density that is not a number"),
        ("reference", {"material_id": None}, "rows without material_id"),
    ],
)
def test_evaluations_that_contradict_themselves(kind, changes, said, tmp_path):
    path = tmp_path / "ours.parquet"
    evaluation(kind, **changes).to_parquet(path)
    with pytest.raises(InputError, match=said):
        read_evaluation(path, kind)


def test_counts_of_a_dataset(tmp_path):
    path = tmp_path / "dataset.parquet"
    table = pd.DataFrame(
        {
            "split_kind": ["split", "split", "disjoint_split"],
            "split": ["train", "test", "train"],
            "crystals": [8, 4, 5],
            "duplicate_groups": [5, 3, 5],
            "with_twin_in_train": [6, 2, 0],
            "mean_sites": [5.0, 5.0, np.nan],
        }
    ).assign(formulas=1, prototypes=1, elements=1, max_sites=5)
    table.to_parquet(path)
    dataset = read_dataset(path)
    assert count(dataset, "train") == 8
    assert count(dataset, "test", "duplicate_groups") == 3
    assert count(dataset, "train", kind="disjoint_split") == 5
    assert count(dataset, "test", kind="disjoint_split") == 0
    table[1:].to_parquet(path)
    with pytest.raises(InputError, match="no crystals to learn from"):
        read_dataset(path)


def test_files_are_found_by_dataset_and_model():
    paths = [Path("perov_5/ours.generated.parquet"), Path("perov_5/cdvae.generated.parquet"),
             Path("mp_20/ours.generated.parquet")]  # fmt: skip
    assert files_by_model(paths) == {
        "perov_5": {"ours": paths[0], "cdvae": paths[1]},
        "mp_20": {"ours": paths[2]},
    }


def test_names():
    assert model_label("dp_cdvae_disjoint") == model_label("dp_cdvae") == "DP-CDVAE"
    assert split_kind("ours_disjoint") == "disjoint_split"
    assert split_kind("ours") == "split"
    assert evaluations("steps_20", 1000) == 20
    assert evaluations("", 1000) == evaluations("eq_6", 1000) == 1000
    assert counterpart("perovskites").published == "Perov-5"
    assert counterpart("my_crystals") == ("my crystals", "", False)
    table = pd.DataFrame({"sampler": ["", "eq_6", ""]})
    assert len(chosen(table)) == 2
    assert len(chosen(table, "eq_6")) == 1
    assert len(MODELS) == 8


def test_tables_of_the_supplement_have_numbers():
    assert heading("Table", "S1") == "Table S1"
    assert heading("Figure", "2") == "Figure 2"
    assert heading("Table", "splits") == "Table: splits"
    assert heading("Table", "S") == "Table: S"


def test_stand_ins():
    public = {"source": "structure_table", "paths": ["perov_5/val.csv", "perov_5/test.csv"]}
    assert crystals_stand_in("perov_5", public) == "val and test files of Perov-5 for all of it"
    whole = {"paths": ["mp_20/train.csv", "mp_20/val.csv", "mp_20/test.csv"]}
    assert crystals_stand_in("mp_20", whole) == ""
    assert crystals_stand_in("perovskites", {}) == "embedded perovskites for Perov-5"
    assert crystals_stand_in("my_crystals", {}) == ""
    assert relaxation_stand_in("chgnet") == "MLIP-relaxed with CHGNet for DFT-relaxed with VASP"
    assert relaxation_stand_in("vasp") == ""
