"""Atomic writes, the pattern store, seeded generators and run.json."""

import errno
import json
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffractory.store import (
    InputError,
    Patterns,
    atomic_file,
    atomic_folder,
    generator,
    read_material_ids,
    read_patterns,
    recorded,
    track,
    write_parquet,
    write_patterns,
    write_text,
)
from diffractory.store.files import room_for
from diffractory.store.provenance import sha256


def make_patterns(counts, seed=0) -> Patterns:
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    p, s = len(counts), int(offsets[-1])
    return Patterns(
        offsets=offsets,
        qx=rng.normal(size=s).astype(np.float32),
        qy=rng.normal(size=s).astype(np.float32),
        intensity=rng.random(s).astype(np.float32),
        hkl=rng.integers(-9, 9, (s, 3)).astype(np.int16),
        material_id=np.array([f"m{seed}-{i}" for i in range(p)], dtype=object),
        zone_axis=rng.integers(-3, 3, (p, 3)).astype(np.int16),
        orientation=rng.normal(size=(p, 3, 3)),
        thickness=np.full(p, 200, dtype=np.float32),
        energy=np.full(p, 2e5, dtype=np.float32),
    )


def assert_equal(a: Patterns, b: Patterns):
    for field in fields(Patterns):
        x, y = getattr(a, field.name), getattr(b, field.name)
        assert np.array_equal(x, y), field.name
        assert field.name == "material_id" or x.dtype == y.dtype, field.name


@settings(max_examples=15, deadline=None)
@given(
    parts=st.lists(st.lists(st.integers(0, 7), max_size=6), min_size=1, max_size=4),
)
def test_store_gives_back_what_was_written_in_parts(tmp_path_factory, parts):
    path = tmp_path_factory.mktemp("store") / "patterns"
    given_parts = [make_patterns(counts, seed) for seed, counts in enumerate(parts)]
    whole = Patterns.concatenate(given_parts)
    assert write_patterns(path, given_parts) == (len(whole), len(whole.qx))
    assert_equal(read_patterns(path), whole)
    assert list(read_material_ids(path)) == list(whole.material_id)


def test_store_is_the_same_bytes_however_it_was_divided(tmp_path):
    parts = [make_patterns([3, 0, 5], 1), make_patterns([2], 2), make_patterns([], 3)]
    for i, part in enumerate(parts):
        write_patterns(tmp_path / f"part{i}", [part])
    write_patterns(tmp_path / "joined", [tmp_path / f"part{i}" for i in range(3)])
    write_patterns(tmp_path / "whole", [Patterns.concatenate(parts)])
    assert sha256(tmp_path / "joined") == sha256(tmp_path / "whole")


def test_range_and_selection_of_patterns(tmp_path):
    whole = make_patterns([3, 0, 5, 2, 4])
    write_patterns(tmp_path / "store", [whole])
    assert_equal(read_patterns(tmp_path / "store", 1, 4), whole.select(np.array([1, 2, 3])))
    assert_equal(read_patterns(tmp_path / "store", 3, 99), whole.select(np.array([3, 4])))
    picked = whole.select(np.array([4, 0]))
    assert np.array_equal(picked.qx, np.concatenate([whole.qx[10:14], whole.qx[0:3]]))


def test_a_million_patterns_are_few_files(tmp_path):
    write_patterns(tmp_path / "store", [make_patterns([1] * 300_000)])
    assert sum(path.is_file() for path in (tmp_path / "store").rglob("*")) < 40


def test_failed_write_leaves_the_old_file_and_no_partial(tmp_path):
    path = tmp_path / "table.parquet"
    write_parquet(path, pd.DataFrame({"x": [1]}))

    def fail():
        with atomic_file(path) as partial:
            partial.write_text("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert pd.read_parquet(path)["x"].tolist() == [1]
    assert [p.name for p in tmp_path.iterdir()] == ["table.parquet"]


def test_a_reader_of_the_old_file_never_sees_the_new_one(tmp_path):
    path = tmp_path / "table.txt"
    write_text(path, "old")
    with path.open() as reader:
        write_text(path, "new and longer")
        assert reader.read() == "old"
    assert path.read_text() == "new and longer"


def test_killed_folder_write_is_not_taken_for_whole(tmp_path):
    script = textwrap.dedent(
        f"""
        import time
        from pathlib import Path
        from diffractory.store import atomic_folder
        with atomic_folder(Path({str(tmp_path / "model")!r})) as folder:
            (folder / "half").write_text("half")
            print("ready", flush=True)
            time.sleep(60)
        """
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "model").exists()
    with atomic_folder(tmp_path / "model") as folder:
        (folder / "whole").write_text("whole")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert [p.name for p in (tmp_path / "model").iterdir()] == ["whole"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("atomic", [atomic_file, atomic_folder])
def test_a_full_disk_is_a_sentence_and_leaves_the_old_and_no_partial(tmp_path, atomic, code):
    path = tmp_path / "product"
    with atomic(path) as partial:
        (partial if atomic is atomic_file else partial / "part").write_text("old")

    def fill():
        with atomic(path) as partial:
            (partial if atomic is atomic_file else partial / "part").write_text("half")
            raise OSError(code, "full")

    with pytest.raises(InputError, match=f"^no space is left to write {path}: make room"):
        fill()
    assert [p.name for p in tmp_path.iterdir()] == ["product"]
    assert (path if atomic is atomic_file else path / "part").read_text() == "old"


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (OSError(errno.ENOSPC, "full"), "what"),
        (OSError(errno.ENOSPC, "full", "written"), "written"),
        (OSError(errno.ENOSPC, "full", "read", None, "written"), "written"),
        (OSError(errno.EACCES, "closed", "written"), None),
    ],
)
def test_the_file_on_the_full_disk_is_named(error, named):
    expected = InputError if named else PermissionError
    sentence = f"no space is left to write {named}:" if named else "closed"
    with pytest.raises(expected, match=sentence), room_for("what"):
        raise error


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, as Linux has it")
@pytest.mark.parametrize("log", ["stage.log", "/dev/full"])
def test_a_script_on_a_full_disk_ends_with_one_sentence(tmp_path, log):
    """Also where its log has no room."""
    script = tmp_path / "script.py"
    body = "print('x' * 10**5, file=open('/dev/full', 'w'))"
    script.write_text(f"from stage import stage\nwith stage({log!r}):\n    {body}\n")
    ended = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(__file__).parents[2] / "workflow/scripts")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    sentence = "\nError: no space is left to write results, or temporary files in /"
    assert sentence in ended.stderr
    assert "Traceback" not in ended.stderr


def test_generator_depends_on_seed_stage_and_item_only():
    draws = {
        (seed, stage, item): generator(seed, stage, item).random()
        for seed in (0, 1)
        for stage in ("split", "orientations")
        for item in ("mp-1", "mp-2")
    }
    assert len(set(draws.values())) == 8
    assert generator(0, "split", "mp-1").random() == draws[0, "split", "mp-1"]


def test_run_record(tmp_path):
    data = tmp_path / "input.txt"
    data.write_text("crystal")
    table, store = tmp_path / "table.csv", tmp_path / "store"
    with recorded(
        tmp_path / "run.json", "clean", {"symprec": 0.01}, [data], [table, store], 7
    ) as facts:
        write_text(table, "1")
        write_text(store / "qx", "2")
        facts["accepted"] = 3
        time.sleep(0.05)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["stage"] == "clean"
    assert record["config"] == {"symprec": 0.01}
    assert record["seed"] == 7
    assert record["facts"] == {"accepted": 3}
    assert record["seconds"] >= 0.05
    assert record["inputs"][str(data)] == sha256(data)
    assert record["outputs"] == {"table.csv": sha256(table), "store": sha256(store)}
    assert record["host"]["processor"]
    assert record["device"] == "cpu"
    assert record["versions"]["numpy"] == np.__version__
    assert record["peak_memory_gib"] > 0.01


def test_no_record_of_a_failed_stage(tmp_path):
    with pytest.raises(ValueError, match="x"), recorded(tmp_path / "r.json", "s", {}, [], [], 0):
        raise ValueError("x")
    assert not (tmp_path / "r.json").exists()


def test_hash_of_a_folder_sees_names_and_contents(tmp_path):
    (tmp_path / "a").write_text("1")
    first = sha256(tmp_path)
    (tmp_path / "run.json").write_text("now")
    assert sha256(tmp_path) == first
    (tmp_path / "a").write_text("2")
    second = sha256(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert len({first, second, sha256(tmp_path)}) == 3


def test_track_yields_everything_and_logs_the_total(caplog):
    with caplog.at_level("INFO"):
        assert list(track(iter("abc"), "Reading", 3, "letters")) == ["a", "b", "c"]
    assert "Reading: 3 letters in" in caplog.text
