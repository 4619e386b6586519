"""Batches of spot lists: every pattern once a pass, in an order of seed and pass alone."""

from dataclasses import replace
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pandas as pd
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from diffractory.store import (
    CRYSTAL_SYSTEMS,
    LATTICE,
    InputError,
    Patterns,
    SpotReader,
    read_patterns,
    write_parquet,
    write_patterns,
)
from diffractory.store.labels import labels_of_split
from diffractory.training import spots
from diffractory.training.spots import SpotBatches

MAX_SPOTS = 10_000  # more than any pattern has


def make_store(path, counts):
    """Write patterns with these numbers of spots, all spots different."""
    counts = np.asarray(counts, dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    p, s = len(counts), int(offsets[-1])
    values = np.arange(1, 3 * s + 1, dtype=np.float32).reshape(3, s)
    patterns = Patterns(
        offsets=offsets,
        qx=values[0],
        qy=-values[1],
        intensity=values[2],
        hkl=np.zeros((s, 3), dtype=np.int16),
        material_id=np.array([f"m{i}" for i in range(p)], dtype=object),
        zone_axis=np.zeros((p, 3), dtype=np.int16),
        orientation=np.zeros((p, 3, 3)),
        thickness=np.full(p, 200, dtype=np.float32),
        energy=np.full(p, 2e5, dtype=np.float32),
    )
    write_patterns(path, [patterns])
    return path


def make_labels(patterns):
    """Return labels that the index of a pattern tells."""
    patterns = np.asarray(patterns, dtype=np.int64)
    return pd.DataFrame(
        {
            "pattern": patterns,
            "crystal_system": np.array(CRYSTAL_SYSTEMS)[patterns % 7],
            "space_group": patterns % 230 + 1,
        }
    )


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def order(batches):
    return [batch.pattern.tolist() for batch in batches]


def padding(batches):
    masks = [batch.mask for batch in batches]
    return 1 - sum(int(m.sum()) for m in masks) / sum(m.numel() for m in masks)


@pytest.fixture
def store(tmp_path):
    """600 patterns of 3 spots on average; with short runs, some 20 of them, in several windows."""
    counts = np.random.default_rng(0).integers(0, 7, 600)
    return make_store(tmp_path / "store", counts)


@pytest.fixture
def short_runs(monkeypatch):
    monkeypatch.setattr(spots, "CHUNK", 90)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=40),
    data=st.data(),
    batch_size=st.integers(1, 7),
    chunk=st.integers(1, 30),
    shuffle=st.booleans(),
    in_memory=st.booleans(),
)
def test_each_pass_has_every_pattern_once_with_its_spots_and_labels(
    tmp_path_factory, counts, data, batch_size, chunk, shuffle, in_memory
):
    path = make_store(tmp_path_factory.mktemp("spots") / "store", counts)
    stored = read_patterns(path)
    indices = st.integers(0, len(counts) - 1)
    wanted = data.draw(st.lists(indices, min_size=1, unique=True), label="patterns of the split")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spots, "CHUNK", chunk)
        patch.setattr(spots, "RUNS", 2)
        patch.setattr(spots, "GROUP", 2)
        batches = SpotBatches(
            path, make_labels(wanted), batch_size, MAX_SPOTS, 1, shuffle, in_memory
        )
        n = len(batches)
        items = [batches[k] for k in range(3 * n)]

    assert n == -(-len(wanted) // batch_size)
    for first in range(0, 3 * n, n):
        seen = [p for batch in order(items[first : first + n]) for p in batch]
        assert sorted(seen) == sorted(wanted)
    sizes = {len(batch.pattern) for batch in items}
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    for batch in items:
        patterns = batch.pattern.numpy()
        assert [t.dtype for t in batch] == [torch.float32, torch.bool, *[torch.int64] * 3]
        assert batch.spots.shape == (len(patterns), max(1, *np.take(counts, patterns), 1), 3)
        assert (batch.spots[~batch.mask] == 0).all()
        for b, p in enumerate(patterns):
            assert batch.mask[b].tolist() == [s < counts[p] for s in range(batch.mask.shape[1])]
            alone = stored.select(np.array([p]))
            expected = np.stack([alone.qx, alone.qy, alone.intensity], axis=1)
            assert np.array_equal(batch.spots[b, : counts[p]].numpy(), expected)
        assert np.array_equal(batch.crystal_system, patterns % 7)
        assert np.array_equal(batch.space_group, patterns % 230)


def test_labels_are_those_of_the_split(tmp_path):
    """Four patterns of three materials, of which two are for training."""
    path = make_store(tmp_path / "all", [1, 2, 0, 4])
    stored = replace(read_patterns(path), material_id=np.array(["b", "c", "a", "b"], dtype=object))
    write_patterns(path, [stored])
    materials = pd.DataFrame(
        {
            "material_id": ["a", "b", "c"],
            "split": ["train", "train", "test"],
            "crystal_system": ["triclinic", "cubic", "hexagonal"],
            "space_group": [2, 225, 194],
        }
    ).assign(**dict.fromkeys(LATTICE, 1.0))
    write_parquet(tmp_path / "structures.parquet", materials)
    labels = labels_of_split(path, tmp_path / "structures.parquet", "train")
    batch = SpotBatches(path, labels, 8, MAX_SPOTS, seed=1, shuffle=False, in_memory=False)[0]
    # In the order of their number of spots.
    assert batch.pattern.tolist() == [2, 0, 3]
    assert batch.crystal_system.tolist() == [0, 6, 6]
    assert batch.space_group.tolist() == [1, 224, 224]
    assert batch.mask.sum(dim=1).tolist() == [0, 1, 4]


def test_only_the_brightest_spots_in_their_order(tmp_path):
    path = make_store(tmp_path / "store", [5, 2, 4])
    group = zarr.open_group(path, mode="r+")
    group["intensity"][:] = [0.1, 0.5, 0.2, 0.4, 0.3, 0.9, 0.8, 0.1, 0.1, 0.2, 0.1]
    batch = SpotBatches(path, make_labels([0, 1, 2]), 4, 3, 1, shuffle=False, in_memory=False)[0]
    found = {int(p): s[m][:, 2] for p, s, m in zip(batch.pattern, *batch[:2], strict=True)}
    assert found[0].tolist() == pytest.approx([0.5, 0.4, 0.3])
    assert found[1].tolist() == pytest.approx([0.9, 0.8])
    assert found[2].tolist() == pytest.approx([0.1, 0.1, 0.2])  # of equal ones the first
    assert batch.mask.shape == (3, 3)


def test_reader_gives_the_spots_of_a_range(tmp_path):
    reader = SpotReader(make_store(tmp_path / "store", [2, 0, 1, 3]))
    assert reader.offsets.tolist() == [0, 2, 2, 3, 6]
    assert reader.offsets.dtype == np.int64
    assert reader.read(1, 3).tolist() == [[3, -9, 15]]
    assert reader.read(1, 2).shape == (0, 3)
    assert reader.read(0, 4).dtype == np.float32


@pytest.mark.usefixtures("short_runs")
@pytest.mark.parametrize("in_memory", [False, True])
def test_batches_are_the_same_whatever_the_workers(store, in_memory):
    """From the middle of the first pass to the middle of the second, in two spawned workers."""
    labels = make_labels(range(600))
    batches = SpotBatches(store, labels, 2, MAX_SPOTS, 1, shuffle=True, in_memory=in_memory)
    assert (batches.window_size < len(batches) / 2) != in_memory
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=range(150, 450),
        num_workers=2,
        multiprocessing_context="spawn",
    )
    fresh = SpotBatches(store, labels, 2, MAX_SPOTS, 1, shuffle=True, in_memory=in_memory)
    given = list(loader)
    assert len(given) == 300
    assert all(same(batch, fresh[k]) for k, batch in enumerate(given, start=150))


@pytest.mark.usefixtures("short_runs")
@pytest.mark.parametrize("in_memory", [False, True])
def test_a_batch_does_not_depend_on_those_asked_for_before(store, in_memory):
    labels = make_labels(range(600))
    straight = SpotBatches(store, labels, 2, MAX_SPOTS, 1, shuffle=True, in_memory=in_memory)
    items = [straight[k] for k in range(900)]
    jumping = SpotBatches(store, labels, 2, MAX_SPOTS, 1, shuffle=True, in_memory=in_memory)
    for k in np.random.default_rng(0).choice(900, 60):
        assert same(jumping[k], items[k])


@pytest.mark.usefixtures("short_runs")
@pytest.mark.parametrize("in_memory", [False, True])
def test_order_depends_on_seed_and_pass_and_not_on_the_order_of_the_labels(store, in_memory):
    labels = make_labels(range(600))

    def passes(labels, seed):
        batches = SpotBatches(store, labels, 2, MAX_SPOTS, seed, shuffle=True, in_memory=in_memory)
        return [order(batches[k] for k in range(p * 300, p * 300 + 300)) for p in range(2)]

    first, second = passes(labels, 1)
    assert passes(labels.sample(frac=1, random_state=0), 1) == [first, second]
    assert first != second
    assert passes(labels, 2)[0] not in (first, second)


@pytest.mark.parametrize("in_memory", [False, True])
def test_patterns_meet_others_in_each_pass_anywhere_in_it(tmp_path, monkeypatch, in_memory):
    """Of 600 patterns of different length in runs of about 5, of which 16 make a window."""
    counts = np.random.default_rng(0).permutation(600) // 8
    store = make_store(tmp_path / "store", counts)
    monkeypatch.setattr(spots, "CHUNK", 5 * counts.sum() // 600)
    monkeypatch.setattr(spots, "RUNS", 16)
    monkeypatch.setattr(spots, "GROUP", 5)
    batches = SpotBatches(
        store, make_labels(range(600)), 4, MAX_SPOTS, 1, shuffle=True, in_memory=in_memory
    )
    passes = [order(batches[k] for k in range(p * 150, p * 150 + 150)) for p in range(2)]

    met = [{(a, b) for batch in p for a in batch for b in batch if a < b} for p in passes]
    assert len(met[0] & met[1]) < 0.1 * len(met[0])
    assert sum(b - a < 5 for a, b in met[0]) < 0.1 * len(met[0])  # 1 in 20 by chance in a window

    def correlation(x, y):
        return abs(np.corrcoef(x, y)[0, 1])

    places = [np.argsort(np.concatenate(p)) for p in passes]
    for known in (np.arange(600), counts, places[1]):
        assert correlation(places[0], known) < 0.3
    length = [[counts[batch].mean() for batch in p] for p in passes]
    assert correlation(length[0], length[1]) < 0.3
    assert correlation(length[0][1:], length[0][:-1]) < 0.3


@pytest.mark.usefixtures("short_runs")
@pytest.mark.parametrize("shuffle", [False, True])
def test_spots_are_read_once_a_pass_in_few_reads(store, monkeypatch, shuffle):
    batches = SpotBatches(
        store, make_labels(range(600)), 2, MAX_SPOTS, 1, shuffle=shuffle, in_memory=False
    )
    reads = []
    read = SpotReader.read

    def counted(reader, start, stop):
        result = read(reader, start, stop)
        reads.append(len(result))
        return result

    monkeypatch.setattr(SpotReader, "read", counted)
    order(batches[k] for k in range(len(batches)))
    windows = -(-len(batches) // batches.window_size)
    assert windows > 1
    assert sum(reads) == batches.reader.offsets[-1]
    assert len(reads) <= len(batches.run_start) + windows  # a window may end within a run


def test_spots_in_memory_are_read_once(store, monkeypatch):
    batches = SpotBatches(
        store, make_labels(range(600)), 2, MAX_SPOTS, 1, shuffle=True, in_memory=True
    )
    batches[0]
    monkeypatch.delattr(SpotReader, "read")
    assert len(batches[len(batches)].pattern) == 2


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """Patterns of 45 spots on average, a tenth with fewer than 15 and a tenth with more than 85."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(2.5, 18, 20_000))
    return make_store(tmp_path_factory.mktemp("uneven") / "store", counts)


@pytest.mark.parametrize("in_memory", [False, True])
def test_little_is_padding(uneven, in_memory):
    labels = make_labels(range(20_000))

    def of(shuffle):
        batches = SpotBatches(
            uneven, labels, 64, MAX_SPOTS, 1, shuffle=shuffle, in_memory=in_memory
        )
        return padding(batches[k] for k in range(len(batches)))

    counts = np.diff(SpotReader(uneven).offsets)
    longest = counts[: 312 * 64].reshape(312, 64).max(axis=1).mean()
    assert counts.mean() / longest < 0.45  # unsorted, more than half would be padding
    assert of(shuffle=True) < 0.4
    assert of(shuffle=False) < 0.03


def in_a_worker(batches):
    """Return what a process that a loader starts gets of batches."""
    return ForkingPickler.loads(ForkingPickler.dumps(batches))


@pytest.mark.parametrize("in_memory", [False, True])
def test_pickle_leaves_spots_behind(uneven, in_memory):
    labels = make_labels(range(20_000))
    batches = SpotBatches(uneven, labels, 64, MAX_SPOTS, 1, shuffle=True, in_memory=in_memory)
    item = batches[3]
    # the spots are 540 bytes a pattern
    assert len(ForkingPickler.dumps(batches)) < 80 * len(labels)
    assert same(in_a_worker(batches)[3], item)
    assert same(batches[3], item)


@pytest.mark.parametrize("in_memory", [False, True])
def test_processes_share_every_batch(store, in_memory):
    """Each has every third pattern, with its own spots and labels, and knows the whole batch."""
    batches = SpotBatches(
        store, make_labels(range(600)), 7, MAX_SPOTS, 1, shuffle=True, in_memory=in_memory
    )
    shares = [batches.shared(rank, 3) for rank in range(3)]
    for k in (0, 50, 130):
        whole = batches[k]
        for rank, share in enumerate(shares):
            part = share[k]
            width = part.mask.shape[1]
            assert torch.equal(part.pattern, whole.pattern)
            assert torch.equal(part.crystal_system, whole.pattern[rank::3] % 7)
            assert torch.equal(part.space_group, whole.pattern[rank::3] % 230)
            assert torch.equal(part.spots, whole.spots[rank::3, :width])
            assert torch.equal(part.mask, whole.mask[rank::3, :width])
            assert not whole.mask[rank::3, width:].any()
            assert same(in_a_worker(share)[k], part)


def test_a_batch_with_fewer_patterns_than_processes_is_refused(store):
    batches = SpotBatches(
        store, make_labels(range(10)), 4, MAX_SPOTS, 1, shuffle=True, in_memory=True
    )  # of 3, 3 and 4 patterns
    assert len(batches.shared(2, 3)[0].spots) == 1
    with pytest.raises(InputError, match="4 processes cannot share a batch of 3 patterns: lower"):
        batches.shared(0, 4)


def test_no_pattern_is_refused(store):
    with pytest.raises(InputError, match=r"no pattern of .*store belongs to this part"):
        SpotBatches(store, make_labels([]), 2, MAX_SPOTS, 1, shuffle=True, in_memory=False)
