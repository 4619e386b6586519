"""Damaged products are refused by name and made again; a full disk leaves nothing half-written."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from projects import products

from diffractory.store.provenance import sha256

CI = ("--configfile", "config/ci.yaml")
RESULTS = Path("results")
STRUCTURES = RESULTS / "structures/prototypes"
STORE = RESULTS / "patterns/prototypes/bloch"
SHARD = RESULTS / "patterns/prototypes/bloch.shards/0-of-2.zarr"
EVALUATION = RESULTS / "evaluation/symmetry"
MODELS = RESULTS / "models/symmetry"
TABLE = RESULTS / "tables/symmetry/table_3.csv"


def truncate(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip_a_bit(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def damage(path: Path, change) -> None:
    """Change a file as a failing disk does: its time stays."""
    times = path.stat()
    path.write_bytes(change(path.read_bytes()))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def advice_on_damage(project, target: Path, damaged: Path) -> Path:
    """Run for a target that must be refused; return what the user is told to delete."""
    result = project.snakemake(str(target), *CI)
    output = result.stdout + result.stderr
    assert result.returncode != 0
    assert "Traceback" not in output
    sentence = rf"^Error: {damaged} is damaged, or .* wrote it: delete (\S+) and run again$"
    found = re.search(sentence, output, re.MULTILINE)
    assert found, output
    assert not (project.folder / target).exists()
    return project.folder / found[1]


def test_every_product_is_in_one_record(finished):
    counts: Counter[Path] = Counter()
    for record in (finished.folder / RESULTS).rglob("*run.json"):
        for name, digest in json.loads(record.read_text())["outputs"].items():
            product = record.parent / name
            counts[product] += 1
            assert not product.exists() or sha256(product) == digest, product
    assert set(counts.values()) == {1}
    files = {path for path in (finished.folder / RESULTS).rglob("*") if path.is_file()}
    without = {path.name for path in files if not counts.keys() & {path, *path.parents}} - {
        ".snakemake_timestamp"
    }
    assert all(name.endswith("run.json") for name in without), without
    missing = {path.parent.name for path in counts if not path.exists()}
    assert missing == {"bloch.shards"}  # deleted once joined


@pytest.mark.parametrize(
    ("change", "file", "target"),
    [
        (truncate, STRUCTURES / "cleaned.parquet", SHARD),
        (truncate, STRUCTURES / "structures.parquet", MODELS / "mvof_ml"),
        (flip_a_bit, STORE / "intensity/c/0", MODELS / "random_forest"),
        (flip_a_bit, MODELS / "mvof_ml/model.safetensors", EVALUATION / "mvof_ml.parquet"),
        (flip_a_bit, EVALUATION / "random_forest.parquet", TABLE),
    ],
    ids=["cleaned", "structures", "store", "model", "predictions"],
)
def test_a_damaged_product_is_refused_and_made_again(finished, rerun, change, file, target):
    """What is read again, as what came from it is to be made again, is compared with its record."""
    damage(rerun.folder / file, change)
    if (rerun.folder / target).exists():
        remove(rerun.folder / target)
    product = STORE if STORE in file.parents else file
    remove(advice_on_damage(rerun, target, product))
    result = rerun.snakemake(str(target), *CI)
    assert result.returncode == 0, result.stdout + result.stderr
    assert products(rerun.folder) == products(finished.folder)
    assert sha256(rerun.folder / product) == sha256(finished.folder / product)


def test_a_truncated_shard_is_refused_and_simulated_again_alone(finished, rerun):
    for path in (rerun.folder / STORE.parent).glob("bloch*"):
        if not path.name.startswith("bloch.perturbed"):
            remove(path)
    until = ("--until", "simulate_patterns", "--notemp")
    result = rerun.snakemake(str(STORE), *until, *CI)
    assert result.returncode == 0, result.stdout + result.stderr
    damage(rerun.folder / SHARD / "qx/c/0", truncate)
    remove(advice_on_damage(rerun, STORE, SHARD))
    result = rerun.snakemake(str(STORE), *CI)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (result.stdout + result.stderr).count("rule simulate_patterns:") == 1
    assert sha256(rerun.folder / STORE) == sha256(finished.folder / STORE)


def test_the_doctor_tells_how_to_make_damaged_products_again(finished, rerun):
    """Also where all that came from them is there, so that Snakemake sees nothing to do."""
    damage(rerun.folder / TABLE.with_suffix(".md"), truncate)
    figure = RESULTS / "figures/symmetry/figure_3.png"
    damage(rerun.folder / figure, flip_a_bit)
    assert rerun.planned(*CI) == {}
    code = "from diffractory.cli import main; main()"
    doctor = [sys.executable, "-c", code, "doctor"]
    told = subprocess.run(
        doctor, cwd=rerun.folder, capture_output=True, text=True, check=False
    ).stdout
    forced = re.search(r"^problem results: 2 products .* snakemake (--forcerun .+)$", told, re.M)
    assert forced, told
    result = rerun.snakemake(*forced[1].split(), *CI)
    assert result.returncode == 0, result.stdout + result.stderr
    assert products(rerun.folder) == products(finished.folder)
    assert sha256(rerun.folder / figure) == sha256(finished.folder / figure)


def may_mount() -> list[str]:
    """Return the command under which a test may mount a small disk of its own, if there is one."""
    for command in (["unshare", "--user", "--map-root-user", "--mount"], ["unshare", "--mount"]):
        mount = [*command, "mount", "-t", "tmpfs", "tmpfs", "/tmp"]  # seen by this process alone
        if shutil.which("unshare") and subprocess.run(mount, capture_output=True).returncode == 0:
            return command
    return []


ON_A_SMALL_DISK = """
set -e
run() { "$PYTHON" -m snakemake "$@" --cores 2 --configfile config/ci.yaml; }
mount -t tmpfs -o size=8m tmpfs results/patterns
head -c 8100k /dev/zero > results/patterns/ballast  # which leaves 92 KiB
run $SHARD > full.log 2>&1 && exit 9
(cd results/patterns && find . -type f) > left.txt
"$PYTHON" -c "from pathlib import Path; from diffractory import doctor
print(doctor.scratch(Path('results/patterns')))" > scratch.txt
rm results/patterns/ballast
run $STORE > room.log 2>&1
cp -r $STORE store
"""


def test_a_full_disk_leaves_no_store_and_room_on_it_is_enough(finished, rerun):
    """Simulate onto a disk of 8 MiB that is nearly full, then remove what fills it."""
    command = may_mount()
    if not command:
        pytest.skip("needs the right to mount: root, or user namespaces (unshare of util-linux)")
    environment = {"PYTHON": sys.executable, "SHARD": str(SHARD), "STORE": str(STORE)}
    done = subprocess.run(
        [*command, "sh", "-c", ON_A_SMALL_DISK],
        cwd=rerun.folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    logs = [(rerun.folder / name).read_text() for name in ("full.log", "room.log")]
    assert done.returncode == 0, done.stderr + "".join(logs)
    assert f"\nError: no space is left to write {SHARD}: make room on its disk" in logs[0]
    assert "Traceback" not in logs[0]
    assert "status='problem'" in (rerun.folder / "scratch.txt").read_text()
    assert (rerun.folder / "left.txt").read_text().split() == ["./ballast"]
    assert sha256(rerun.folder / "store") == sha256(finished.folder / STORE)
