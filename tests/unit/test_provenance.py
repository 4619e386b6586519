"""Nothing is made from a damaged file: every input is compared with the record of its stage."""

import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
from test_store import make_patterns

from diffractory.store import (
    InputError,
    atomic_folder,
    recorded,
    write_parquet,
    write_patterns,
    write_text,
)
from diffractory.store.provenance import sha256, verified

TABLE, STORE, MODEL = Path("structures.parquet"), Path("bloch"), Path("models/net")
SHARD, REJECTED = (Path(f"bloch.shards/0-of-2.{kind}") for kind in ("zarr", "rejected.parquet"))


def make_all():
    """Write one product of each kind into the working directory, with its record."""
    rows = pd.DataFrame({"material_id": [f"m{i}" for i in range(200)]})
    with recorded(Path("structures.run.json"), "split_structures", {}, [], [TABLE], 7):
        write_parquet(TABLE, rows)
    with recorded(Path("bloch.run.json"), "collect_patterns", {}, [], [STORE], 7):
        write_patterns(STORE, [make_patterns([3, 0, 5])])
    record = SHARD.with_suffix(".run.json")
    with recorded(record, "simulate_patterns", {}, [], [SHARD, REJECTED], 7):
        write_patterns(SHARD, [make_patterns([2, 4])])
        write_parquet(REJECTED, rows)
    with (
        atomic_folder(MODEL) as folder,
        recorded(folder / "run.json", "train_net", {}, [], [folder], 7),
    ):
        (folder / "model.safetensors").write_bytes(bytes(1000))
        (folder / "last.ckpt").write_bytes(bytes(2000))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_all()
    return folder


@pytest.fixture(autouse=True)
def project(made, tmp_path, monkeypatch):
    """Return a copy that a test may change, as the working directory."""
    shutil.copytree(made, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def truncate(path):
    os.truncate(path, path.stat().st_size - 1)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


PRODUCTS = [
    (TABLE, TABLE, "split_structures", TABLE),
    (STORE, STORE, "collect_patterns", STORE),
    (SHARD, SHARD, "simulate_patterns", SHARD),
    (REJECTED, REJECTED, "simulate_patterns", REJECTED),
    (MODEL / "model.safetensors", MODEL / "model.safetensors", "train_net", MODEL),
    (MODEL, MODEL / "last.ckpt", "train_net", MODEL),
]
"""What is read, what is damaged of it, the stage that wrote it, and what is to be deleted."""


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, Path.unlink])
@pytest.mark.parametrize(("read", "damaged", "stage", "whole"), PRODUCTS, ids=str)
def test_damage_is_named_before_the_stage_begins(damage, read, damaged, stage, whole):
    files = [damaged] if damaged.is_file() else sorted(p for p in damaged.rglob("*") if p.is_file())
    for file in files:
        whole_content = file.read_bytes()
        damage(file)
        sentence = f"^{damaged} is damaged, .* {stage} wrote it: delete {whole} and run again$"
        stage_of_table = recorded(Path("table.run.json"), "tabulate", {}, [read], [], 7)
        with pytest.raises(InputError, match=sentence), stage_of_table:
            pytest.fail("the stage has begun")
        assert not Path("table.run.json").exists()
        file.write_bytes(whole_content)
        assert verified([read]) == {str(read): sha256(read)}


def test_all_products_are_taken_as_they_were_written():
    paths = [read for read, *_ in PRODUCTS]
    assert verified(paths) == {str(path): sha256(path) for path in paths}


def test_a_file_that_its_stage_does_not_read_does_not_stop_it():
    truncate(MODEL / "last.ckpt")
    (MODEL / "notes.txt").write_text("mine")
    assert list(verified([MODEL / "model.safetensors"])) == [str(MODEL / "model.safetensors")]


@pytest.mark.parametrize(
    "record",
    [
        None,
        {"stage": "split_structures"},
        {"stage": "split_structures", "outputs": {"other.parquet": "0"}},
        {"outputs": ["of another program"]},
        {"outputs": {"structures.parquet": "of another program"}},
    ],
)
def test_what_no_record_knows_is_taken_as_it_is(record):
    Path("structures.run.json").unlink()
    if record is not None:
        Path("structures.run.json").write_text(json.dumps(record))
    truncate(TABLE)
    assert verified([TABLE]) == {str(TABLE): sha256(TABLE)}


@pytest.mark.parametrize("content", [b"", b'{"stage": "split', b"[]", b"\xff\xfe"])
def test_a_damaged_record_is_named(content):
    Path("structures.run.json").write_bytes(content)
    sentence = r"^structures\.run\.json is not a record .* --forcerun structures\.run\.json$"
    with pytest.raises(InputError, match=sentence):
        verified([TABLE])
    (MODEL / "run.json").write_bytes(content)
    with pytest.raises(InputError, match=f"--forcerun {MODEL}$"):
        verified([MODEL / "model.safetensors"])


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs the files of Linux in /proc")
def test_an_input_on_a_failing_disk_is_named():
    path = Path("/proc/self/mem")  # its first byte gives the error of a broken disk
    with pytest.raises(InputError, match=r"^/proc/self/mem cannot be read \(Input/output error\)"):
        verified([path])


def test_the_outputs_are_those_at_the_end():
    with recorded(Path("late.run.json"), "late", {}, [], [Path("late.txt")], 7):
        write_text(Path("late.txt"), "first")
        write_text(Path("late.txt"), "last")
    verified([Path("late.txt")])
    Path("late.txt").write_text("first")
    with pytest.raises(InputError, match="late"):
        verified([Path("late.txt")])


def test_a_folder_that_holds_its_record_has_all_its_files_in_it():
    record = json.loads((MODEL / "run.json").read_text())
    names = ("last.ckpt", "model.safetensors")
    assert record["outputs"] == {name: sha256(MODEL / name) for name in names}
