"""Where products came from: the right record, and whether what was read is still there."""

import json
import shutil
from pathlib import Path

import pytest
from test_report import make_inputs

from diffractory.evaluation.report import make_report
from diffractory.store import InputError, recorded, write_text
from diffractory.store.lineage import Product, lineage
from diffractory.store.provenance import find_record

STRUCTURES, PATTERNS = Path("results/structures/toy"), Path("results/patterns/toy")
MODEL, EVALUATION = Path("results/models/symmetry/net"), Path("results/evaluation/symmetry")
TABLE = Path("results/tables/symmetry/table_3.csv")
SHARDS = [PATTERNS / f"bloch.shards/{i}-of-2.zarr" for i in range(2)]


def make(record, stage, inputs, outputs, **facts):
    """Write what a stage writes: its products, and the record of what it read."""
    with recorded(record, stage, {}, inputs, outputs, 7) as added:
        added |= facts
        for output in outputs:
            write_text(output, f"{output} of {stage}")


def make_project():
    """Write the products of a small run into the working directory, as the workflow names them."""
    retrieved, cleaned, rejected, structures = (
        STRUCTURES / f"{name}.parquet"
        for name in ("retrieved", "cleaned", "rejected", "structures")
    )
    write_text(Path("data.csv"), "crystals")
    make(
        STRUCTURES / "retrieved.run.json", "retrieve", [Path("data.csv")], [retrieved], retrieved=9
    )
    counts = {"accepted": 6, "rejected": {"too_big": 2, "disordered": 1}}
    make(STRUCTURES / "cleaned.run.json", "clean", [retrieved], [cleaned, rejected], **counts)
    make(STRUCTURES / "structures.run.json", "split", [cleaned], [structures])
    shards = [shard / "qx" for shard in SHARDS]
    make(PATTERNS / "bloch.simulation.run.json", "simulate", [cleaned], shards, rejected={})
    store = PATTERNS / "bloch/zarr.json"
    make(
        PATTERNS / "bloch.run.json", "collect", SHARDS, [store, PATTERNS / "bloch.rejected.parquet"]
    )
    shutil.rmtree(PATTERNS / "bloch.shards")
    read = [store.parent, structures]
    perturbed = [PATTERNS / "bloch.perturbed/zarr.json", PATTERNS / "bloch.perturbed.parquet"]
    make(PATTERNS / "bloch.perturbed.run.json", "perturb", read, perturbed)
    weights = [MODEL / "model.safetensors", MODEL / "hparams.json"]
    make(MODEL / "run.json", "train", read, weights)
    predictions = EVALUATION / "net.parquet"
    make(EVALUATION / "net.run.json", "evaluate", [*weights, *read], [predictions])
    make(TABLE.with_suffix(".run.json"), "tabulate", [predictions], [TABLE])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_project()
    return folder


@pytest.fixture
def project(made, tmp_path, monkeypatch):
    """Return a copy that a test may change, as the working directory."""
    shutil.copytree(made, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def stages(product: Product) -> dict:
    """Return the tree as nested names of stages, or of files from outside."""
    return {
        source.record.stage if source.record else source.paths[0]: (source.state, stages(source))
        for source in product.inputs
    }


def test_a_table_is_led_back_to_the_source(project):
    (table,) = lineage([TABLE])
    source = {"data.csv": ("unchanged", {})}
    cleaned = {"clean": ("unchanged", {"retrieve": ("unchanged", source)})}
    read = {
        "collect": ("unchanged", {"simulate": ("deleted once joined", cleaned)}),
        "split": ("unchanged", cleaned),
    }
    evaluated = {"train": ("unchanged", read), **read}
    assert stages(table) == {"evaluate": ("unchanged", evaluated)}
    assert table.record.stage == "tabulate"
    assert table.record.seed == 7
    weights, patterns, _ = table.inputs[0].inputs
    assert weights.paths == [str(MODEL / "model.safetensors"), str(MODEL / "hparams.json")]
    assert patterns.inputs[0].paths == [str(shard) for shard in SHARDS]
    clean = patterns.inputs[0].inputs[0].record
    assert clean.counts == {"accepted": 6, "rejected": {"too_big": 2, "disordered": 1}}


@pytest.mark.parametrize(
    ("product", "record"),
    [
        (STRUCTURES / "retrieved.parquet", STRUCTURES / "retrieved.run.json"),
        (STRUCTURES / "cleaned.parquet", STRUCTURES / "cleaned.run.json"),
        (STRUCTURES / "rejected.parquet", STRUCTURES / "cleaned.run.json"),
        (STRUCTURES / "structures.parquet", STRUCTURES / "structures.run.json"),
        (PATTERNS / "bloch", PATTERNS / "bloch.run.json"),
        (PATTERNS / "bloch.rejected.parquet", PATTERNS / "bloch.run.json"),
        (PATTERNS / "bloch.perturbed", PATTERNS / "bloch.perturbed.run.json"),
        (PATTERNS / "bloch.perturbed.parquet", PATTERNS / "bloch.perturbed.run.json"),
        (SHARDS[0], PATTERNS / "bloch.simulation.run.json"),
        (MODEL, MODEL / "run.json"),
        (MODEL / "model.safetensors", MODEL / "run.json"),
        (EVALUATION / "net.parquet", EVALUATION / "net.run.json"),
        (TABLE, TABLE.with_suffix(".run.json")),
        (TABLE.with_suffix(".md"), TABLE.with_suffix(".run.json")),
        (MODEL / "run.json", MODEL / "run.json"),
        (STRUCTURES, None),
        (Path("data.csv"), None),
    ],
    ids=str,
)
def test_every_product_has_its_record(project, product, record):
    assert find_record(product) == record


def test_a_changed_and_a_removed_input_are_told(project):
    with (STRUCTURES / "structures.parquet").open("a") as file:
        file.write("more")
    (MODEL / "hparams.json").unlink()
    (EVALUATION / "net.parquet").touch()  # the same content, written later
    (table,) = lineage([TABLE])
    (predictions,) = table.inputs
    assert predictions.state == "unchanged"
    states = {path: source.state for source in predictions.inputs for path in source.paths}
    assert states == {
        str(MODEL / "model.safetensors"): "unchanged",
        str(MODEL / "hparams.json"): "not there any more",
        str(PATTERNS / "bloch"): "unchanged",
        str(STRUCTURES / "structures.parquet"): "changed since",
    }


def test_what_differs_from_its_own_record_is_damaged(project):
    weights = MODEL / "model.safetensors"
    weights.write_text("other")
    (MODEL / "hparams.json").unlink()
    (table,) = lineage([TABLE])
    (predictions,) = table.inputs
    damaged = {source.record.stage: source.damaged for source in predictions.inputs}
    assert damaged == {"train": [project / weights], "collect": [], "split": []}
    make(MODEL / "run.json", "train again", [], [weights])
    (table,) = lineage([TABLE])
    assert table.inputs[0].inputs[0].state == "changed since"
    assert table.inputs[0].inputs[0].damaged == []


def test_a_changed_file_in_a_store_is_told(project):
    write_text(PATTERNS / "bloch/extra", "")
    (model,) = lineage([MODEL])
    assert [source.state for source in model.inputs] == ["changed since", "unchanged"]


def test_a_record_is_read_once(project):
    first, second = lineage([TABLE, EVALUATION / "net.parquet"])
    assert first.inputs[0].record is second.record
    assert first.inputs[0].inputs is second.inputs


def test_relative_inputs_are_found_from_anywhere(project, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    (table,) = lineage([project / TABLE])
    assert table.inputs[0].state == "unchanged"
    monkeypatch.chdir(project / TABLE.parent)
    (table,) = lineage([Path(TABLE.name)])
    assert table.inputs[0].state == "unchanged"


def test_results_may_be_a_link_to_another_disk(project, tmp_path_factory, monkeypatch):
    scratch = tmp_path_factory.mktemp("scratch") / "run1"
    shutil.move("results", scratch)
    Path("results").symlink_to(scratch)
    monkeypatch.chdir("/")
    table, retrieved = lineage([project / TABLE, project / STRUCTURES / "retrieved.parquet"])
    assert table.inputs[0].state == "unchanged"
    assert stages(retrieved) == {"data.csv": ("unchanged", {})}


def test_results_may_be_kept_under_another_name(project):
    shutil.move("results", "results_of_may")
    whole = stages(lineage([Path("results_of_may", *TABLE.parts[1:])])[0])
    shutil.move("results_of_may", "results")
    assert whole == stages(lineage([TABLE])[0])


def test_a_record_that_leads_back_to_itself_ends(project):
    record = STRUCTURES / "retrieved.run.json"
    content = json.loads(record.read_text())
    content["inputs"] = {str(STRUCTURES / "structures.parquet"): "0"}
    record.write_text(json.dumps(content))
    (product,) = lineage([STRUCTURES / "retrieved.parquet"])
    (structures,) = product.inputs
    assert structures.inputs[0].inputs[0].record == product.record


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b'{"stage": "clean", ',
        {"inputs": ["a"]},
        {"facts": None},
        {"versions": 3},
        {"start": "yesterday"},
        {"seconds": None},
        {"git_commit": 5},
    ],
    ids=str,
)
def test_a_broken_record_is_named_in_one_sentence(project, broken):
    record = STRUCTURES / "cleaned.run.json"
    if isinstance(broken, dict):
        broken = json.dumps(json.loads(record.read_text()) | broken).encode()
    record.write_bytes(broken)
    with pytest.raises(InputError, match=r"cleaned\.run\.json is not a record of a stage") as error:
        lineage([TABLE])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", ["nothing.csv", "data.csv", "results", "/", "page.html"])
def test_what_has_no_record_is_named(project, path):
    Path("page.html").write_text("<p>no report</p>")
    with pytest.raises(InputError, match=f"^{path} .* no run.json"):
        lineage([Path(path)])


def test_a_report_came_from_its_tables_and_figures(tmp_path):
    tables, figures, records = make_inputs(tmp_path)
    for path in (*tables, *figures):
        with recorded(path.with_suffix(".run.json"), f"make {path.stem}", {}, [], [path], 7):
            pass
    page = tmp_path / "report.html"
    make_report(page, tables, figures, records, "make {file}", tmp_path / "report.run.json", seed=7)
    figures[0].unlink()
    (report,) = lineage([page])
    assert report.record.stage == "report"
    assert {source.record.stage: source.state for source in report.inputs} == {
        f"make {path.stem}": "unchanged" if path.exists() else "not there any more"
        for path in (*tables, *figures)
    }


def test_a_report_may_be_kept_under_another_name_of_its_folder(project):
    page = Path("results/report.html")
    make(page.with_suffix(".run.json"), "report", [TABLE], [page])
    shutil.move("results", "results_of_may")
    (report,) = lineage([Path("results_of_may/report.html")])
    assert report.inputs[0].state == "unchanged"
