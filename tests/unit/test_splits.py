import json
from collections import Counter

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffractory.structures.splits import assign_splits, split_structures

BY_MATERIAL = {"by": "material", "new_prototypes": 0.2, "test": 0.25, "validation": 0.1}
BY_PROTOTYPE = {**BY_MATERIAL, "by": "prototype"}

materials = st.lists(
    st.tuples(st.integers(0, 12).map("m{}".format), st.integers(0, 6).map("A_cP{}_221_1".format)),
    max_size=40,
)


def sides(rows, split, seed=1):
    return assign_splits([group for group, _ in rows], [label for _, label in rows], split, seed)


@given(rows=materials, by=st.sampled_from([BY_MATERIAL, BY_PROTOTYPE]), seed=st.integers(0, 5))
def test_no_group_is_on_two_sides(rows, by, seed):
    side = sides(rows, by, seed)
    assert len(side) == len(rows)
    kinds = [0] if by is BY_MATERIAL else [0, 1]
    for kind in kinds:
        seen = {(row[kind], s) for row, s in zip(rows, side, strict=True)}
        assert len(seen) == len({row[kind] for row in rows})


@given(rows=materials, more=materials)
def test_new_groups_move_none(rows, more):
    more = [(f"z{group}", f"z{label}") for group, label in more]
    for split in (BY_MATERIAL, BY_PROTOTYPE):
        assert sides(more + rows, split)[len(more) :] == sides(rows, split)


@given(rows=materials, data=st.data())
def test_order_is_immaterial(rows, data):
    order = data.draw(st.permutations(range(len(rows))))
    for split in (BY_MATERIAL, BY_PROTOTYPE):
        side = sides(rows, split)
        assert sides([rows[i] for i in order], split) == [side[i] for i in order]


def test_duplicates_tie_prototypes_together():
    rows = [("m1", "p1"), ("m1", "p2"), ("m2", "p2"), ("m3", "p3"), ("m3", "p1")]
    for seed in range(20):
        assert len(set(sides(rows, BY_PROTOTYPE, seed))) == 1


@given(rows=materials, seed=st.integers(0, 20))
def test_no_other_part_has_a_new_prototype(rows, seed):
    labels = {True: set(), False: set()}
    for (_, label), side in zip(rows, sides(rows, BY_MATERIAL, seed), strict=True):
        labels[side == "new_prototype"].add(label)
    assert labels[True].isdisjoint(labels[False])


def test_fraction_of_new_prototypes():
    n = 4000
    counts = Counter(sides([(f"m{i}", f"p{i // 2}") for i in range(2 * n)], BY_MATERIAL))
    assert counts["new_prototype"] / 2 == pytest.approx(0.2 * n, abs=4 * (0.16 * n) ** 0.5)


def test_new_prototypes_leave_the_other_materials_where_they_are():
    rows = [(f"m{i}", f"p{i // 2}") for i in range(400)]
    without = sides(rows, {**BY_MATERIAL, "new_prototypes": 0.0})
    moved = [(a, b) for a, b in zip(without, sides(rows, BY_MATERIAL), strict=True) if a != b]
    assert moved
    assert {b for _, b in moved} == {"new_prototype"}


@pytest.mark.parametrize(
    ("test", "validation", "expected"),
    [
        (0.25, 0.1, {"test": 0.25, "validation": 0.075, "train": 0.675}),
        (0.0, 0.5, {"test": 0.0, "validation": 0.5, "train": 0.5}),
        (1.0, 0.5, {"test": 1.0, "validation": 0.0, "train": 0.0}),
        (0.0, 0.0, {"test": 0.0, "validation": 0.0, "train": 1.0}),
    ],
)
def test_fractions(test, validation, expected):
    n = 4000
    split = {"by": "material", "new_prototypes": 0.0, "test": test, "validation": validation}
    counts = Counter(sides([(f"m{i}", "p") for i in range(n)], split))
    for name, fraction in expected.items():
        # Four standard deviations of a binomial distribution.
        margin = 4 * (fraction * (1 - fraction) * n) ** 0.5
        assert counts[name] == pytest.approx(fraction * n, abs=margin)


def test_seed_matters():
    rows = [(f"m{i}", "p") for i in range(200)]
    assert sides(rows, BY_MATERIAL, 1) != sides(rows, BY_MATERIAL, 2)


def test_stage_adds_the_column_and_keeps_the_rest(tmp_path):
    cleaned, structures, run = (tmp_path / name for name in ("c.parquet", "s.parquet", "run.json"))
    ids = [f"m{i}" for i in range(50)]
    prototypes = [f"p{i % 9}" for i in range(50)]
    table = pd.DataFrame(
        {"material_id": ids, "duplicate_group": ids, "prototype": prototypes, "structure": "{}"}
    )
    table.to_parquet(cleaned, index=False)
    split_structures(cleaned, structures, run, BY_MATERIAL, 1)
    result = pd.read_parquet(structures)
    pd.testing.assert_frame_equal(result.drop(columns="split"), table)
    assert list(result["split"]) == assign_splits(ids, prototypes, BY_MATERIAL, 1)
    counts = json.loads(run.read_text())["facts"]["materials"]
    assert counts == Counter(result["split"])
    assert set(counts) == {"train", "validation", "test", "new_prototype"}
