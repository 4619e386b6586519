"""One whole run at the ci scale: its products, what a rerun does, and what a kill leaves behind."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import yaml
from projects import OF_EACH_STUDY, check_each_study, copy_project, products

from diffractory.evaluation.report_summary import HEADLINES
from diffractory.store import read_patterns

CI = ("--configfile", "config/ci.yaml")
OF_SCAN = ["scan", "scan_confusion"]
TABLES = [1, 2, 3, 4, 5, 6, "ablations", "calibration", "prototypes", "robustness", *OF_SCAN]
FIGURES = [1, 2, 3, 4, 5, 6, 7, 8, "calibration", "robustness", "zone_axes"]
UED_TABLES = ["accuracy", "experiment", "steering"]
UED_FIGURES = [1, 2, 3, 4, 5, 6, 7]
STRUCTURE_2D_TABLES = [1, "ablations", "conditions", "families", "galleries"]
STRUCTURE_2D_FIGURES = [1, 2, 3, 4, "retrieval"]
GENERATION_TABLES = [1, 2, 3, "S1", "splits", "steps", "tolerances"]
GENERATION_FIGURES = [1, 2, "S1", "S2", "crystals", "steps"]
MODELS = ["random_forest", "pe_ag_gmoe", "mvof_ml", "ours", "short"]
RETRIEVAL_MODELS = ["dd2d", "dd2d_perturbed", "invariant", "invariant_perturbed"]
GENERATORS = ["ftcp", "cdvae", "cdvae_fourier", "dp_cdvae", "dp_cdvae_na", "dp_cdvae_gine",
              "dp_cdvae_na_gine", "ours", "dp_cdvae_disjoint", "ours_disjoint"]  # fmt: skip
OF_ALL_MODELS = {
    "train_random_forest": 1,
    "evaluate_random_forest": 1,
    "evaluate_perturbed_random_forest": 1,
    "train_network": 4,
    "evaluate_network": 4,
    "evaluate_perturbed_network": 3,
    "map_scan": 3,
    "report": 1,
    "all": 1,
}
"""Jobs that follow the patterns or the split, but for the tables and figures."""
ALL_SHOWN = {"tabulate_symmetry": len(TABLES), "plot_symmetry": len(FIGURES)}


def edit(project, change):
    """Change one key of the ci config in place."""
    path = project.folder / "config/ci.yaml"
    config = yaml.safe_load(path.read_text())
    section, keys = config, change[0].split(".")
    for key in keys[:-1]:
        section = section.setdefault(key, {})
    section[keys[-1]] = change[1]
    path.write_text(yaml.safe_dump(config))


@pytest.mark.parametrize(
    ("study", "tables", "figures"),
    [
        ("symmetry", TABLES, FIGURES),
        ("ued", UED_TABLES, UED_FIGURES),
        ("structure_2d", STRUCTURE_2D_TABLES, STRUCTURE_2D_FIGURES),
        ("generation", GENERATION_TABLES, GENERATION_FIGURES),
    ],
)
def test_every_table_and_figure_is_there(finished, study, tables, figures):
    results = finished.folder / "results"
    for n in tables:
        table = pd.read_csv(results / f"tables/{study}/table_{n}.csv", dtype=str)
        assert len(table) > 0
        # What the paper has of other data sets and models is shown without numbers of ours.
        others = table["row"].str.contains("Carbon-24|MP-20|G-SchNet")
        assert (study == "generation") >= others.any()
        assert ((table["value"] == "not run") == others).all()
        assert (results / f"tables/{study}/table_{n}.md").stat().st_size > 100
    for n in figures:
        for suffix in ("svg", "png", "csv"):
            assert (results / f"figures/{study}/figure_{n}.{suffix}").stat().st_size > 100


def test_report_holds_the_tables(finished):
    page = (finished.folder / "results/report.html").read_text()
    figures = [*FIGURES, *UED_FIGURES, *STRUCTURE_2D_FIGURES, *GENERATION_FIGURES]
    assert page.count("<svg") >= len(figures)
    assert "Simulated series (abTEM multislice, frozen phonons)" in page
    assert "embedded 2D prototypes for C2DB" in page
    table = pd.read_csv(finished.folder / "results/tables/symmetry/table_3.csv", dtype=str)
    shown = table[["value", "published"]].fillna("").to_numpy().ravel()
    assert {"89.2", "74.2"} <= set(shown)
    for value in shown:
        assert value in page


@pytest.mark.parametrize("headline", HEADLINES, ids=lambda one: f"{one.study}-{one.table}")
def test_headlines_of_the_report_are_in_the_tables(finished, headline):
    path = finished.folder / f"results/tables/{headline.study}/table_{headline.table}.csv"
    table = pd.read_csv(path, dtype=str)
    for cell in headline.cells:
        assert (table["row"].str.endswith(cell.row) & (table["column"] == cell.column)).any()


def test_every_structure_is_accounted_for(finished):
    folder = finished.folder / "results/structures/prototypes"
    retrieved, accepted, rejected = (
        pd.read_parquet(folder / f"{name}.parquet")
        for name in ("retrieved", "structures", "rejected")
    )
    assert sorted([*accepted.material_id, *rejected.material_id]) == sorted(retrieved.material_id)


@pytest.mark.parametrize("model", MODELS)
def test_predictions_are_of_test_materials_alone(finished, model):
    results = finished.folder / "results"
    materials = pd.read_parquet(results / "structures/prototypes/structures.parquet")
    patterns = read_patterns(results / "patterns/prototypes/bloch")
    predictions = pd.read_parquet(results / f"evaluation/symmetry/{model}.parquet")
    test = set(materials.material_id[materials.split.isin(["test", "new_prototype"])])
    assert set(predictions.material_id) == test
    assert len(predictions) == sum(m in test for m in patterns.material_id)
    assert (patterns.material_id[predictions.pattern] == predictions.material_id).all()
    probabilities = predictions.filter(regex="^probability_(?!space_group)")
    assert probabilities.shape[1] == 7
    assert (probabilities.sum(axis=1) - 1).abs().max() < 1e-5


def test_images_are_told_by_networks_that_did_not_see_them(finished):
    results = finished.folder / "results"
    for store, model in (("classes", "cnn_syn"), ("latent", "c_vae")):
        samples = pd.read_parquet(results / f"patterns/mote2/{store}.samples.parquet")
        said = pd.read_parquet(results / f"evaluation/ued/{model}.parquet")
        test = samples[samples["split"] == "test"]
        assert list(said["sample"]) == list(test["sample"])
        assert list(said["kind"]) == list(test["kind"])
    probabilities = pd.read_parquet(results / "evaluation/ued/cnn_syn.parquet").filter(
        regex="^probability_"
    )
    assert probabilities.shape[1] == 7
    assert (probabilities.sum(axis=1) - 1).abs().max() < 1e-5


@pytest.mark.parametrize("model", [*RETRIEVAL_MODELS, "ablations/small"])
def test_crystals_of_the_test_are_looked_for_in_every_condition(finished, model):
    results = finished.folder / "results"
    layers = pd.read_parquet(results / "structures/layers/relaxed.parquet")
    said = pd.read_parquet(results / f"evaluation/structure_2d/{model}.parquet")
    test = layers.material_id[layers.split == "test"].tolist()
    conditions = yaml.safe_load((finished.folder / "config/config.yaml").read_text())
    conditions = ["as_simulated", *conditions["structure_2d"]["conditions"]]
    for gallery, size in (("test", len(test)), ("distractors", 4 * len(test))):
        for condition in conditions:
            part = said[(said.condition == condition) & (said.gallery == gallery)]
            assert part.material_id.tolist() == test
            assert (part.gallery_size == size).all()
    assert len(said) == 2 * len(conditions) * len(test)


@pytest.mark.parametrize("model", GENERATORS)
def test_test_crystals_are_reconstructed_and_others_generated(finished, model):
    results = finished.folder / "results"
    split = "disjoint_split" if model.endswith("_disjoint") else "split"
    crystals = pd.read_parquet(results / "structures/perovskites/crystals.parquet")
    test = crystals.material_id[crystals[split] == "test"]
    evaluated = results / "evaluation/generation/perovskites"
    found = pd.read_parquet(evaluated / f"{model}.parquet")
    samplers = {"dp_cdvae": ["", "eq_6", "steps_5"], "ours": ["", "steps_5"]}
    samplers |= {m: ["", "eq_6"] for m in GENERATORS if m.startswith("dp_cdvae_")}
    samplers["dp_cdvae_disjoint"] = [""]
    assert found["sampler"].unique().tolist() == samplers.get(model, [""])
    for _, part in found.groupby("sampler"):
        assert len(part) == part.material_id.nunique() == min(8, len(test))
        assert set(part.material_id) <= set(test)
    made = pd.read_parquet(evaluated / f"{model}.generated.parquet")
    reference = pd.read_parquet(evaluated / f"{model}.generated.reference.parquet")
    assert len(made) == 12
    assert reference.material_id.tolist() == test.tolist()


def test_every_layer_is_accounted_for(finished):
    results = finished.folder / "results"
    cleaned, layers, rejected = (
        pd.read_parquet(results / f"structures/layers/{name}.parquet")
        for name in ("cleaned", "layers", "layers.rejected")
    )
    assert sorted([*layers.material_id, *rejected.material_id]) == sorted(cleaned.material_id)
    for motion in ("unperturbed", "perturbed"):
        patterns = read_patterns(results / f"patterns/layers/{motion}")
        left_out = pd.read_parquet(results / f"patterns/layers/{motion}.rejected.parquet")
        ids = [*patterns.material_id, *left_out.material_id]
        assert sorted(ids) == sorted(layers.material_id)


def test_intensities_are_fractions_of_the_incident_beam(finished):
    patterns = read_patterns(finished.folder / "results/patterns/prototypes/bloch")
    sums = pd.Series(patterns.intensity).groupby(patterns.pattern_of_spot).sum()
    assert sums.max() <= 1.001
    assert sums.min() > 0.8  # the rest is in spots below min_intensity


def test_every_stage_left_its_record(finished):
    records = [json.loads(p.read_text()) for p in (finished.folder / "results").rglob("*run.json")]
    stages = {record["stage"] for record in records}
    assert {
        "retrieve_structures",
        "clean_structures",
        "collect_patterns",
        "prepare_layers",
        *(f"train_{model}" for model in [*MODELS, *RETRIEVAL_MODELS, "small", *GENERATORS]),
    } <= stages
    assert all(record["peak_memory_gib"] < 4 for record in records)


def test_nothing_to_do_after_a_full_run(finished):
    assert finished.planned(*CI) == {}


def test_another_order_of_keys_reruns_nothing(rerun):
    path = rerun.folder / "config/ci.yaml"
    before = path.read_text()
    edit(rerun, ("scale", "ci"))
    assert path.read_text() != before
    assert rerun.planned(*CI) == {}


def test_editing_the_forest_reruns_that_model_alone(rerun):
    edit(rerun, ("symmetry.random_forest.n_estimators", 21))
    assert rerun.planned(*CI) == {
        "train_random_forest": 1,
        "evaluate_random_forest": 1,
        "evaluate_perturbed_random_forest": 1,
        "map_scan": 1,
        "tabulate_symmetry": 8,
        "plot_symmetry": 5,
        "report": 1,
        "all": 1,
    }


def test_editing_a_learning_rate_reruns_that_network_alone(rerun):
    edit(rerun, ("symmetry.pe_ag_gmoe.training.learning_rate", 0.002))
    assert rerun.planned(*CI) == {
        "train_network": 1,
        "evaluate_network": 1,
        "evaluate_perturbed_network": 1,
        "map_scan": 1,
        "tabulate_symmetry": 10,
        "plot_symmetry": 9,
        "report": 1,
        "all": 1,
    }


def test_editing_an_ablation_reruns_it_and_its_table(rerun):
    edit(rerun, ("symmetry.ablations.short.training.epochs", 2))
    expected = {"train_network": 1, "evaluate_network": 1, "tabulate_symmetry": 1}
    assert rerun.planned(*CI) == expected | {"report": 1, "all": 1}


def test_editing_thicknesses_reruns_simulation_and_what_follows(rerun):
    edit(rerun, ("simulate.thicknesses", [100.0, 200.0]))
    expected = {"simulate_patterns": 2, "collect_patterns": 1, "perturb_patterns": 1}
    expected |= {"summarize_dataset": 1}
    assert rerun.planned(*CI) == OF_ALL_MODELS | ALL_SHOWN | expected


def test_editing_the_vote_redoes_tables_and_figures_only(rerun):
    edit(rerun, ("symmetry.aggregate", 5))
    expected = {"tabulate_symmetry": 4, "plot_symmetry": 1, "report": 1, "all": 1}
    assert rerun.planned(*CI) == expected


def test_editing_a_perturbation_trains_nothing(rerun):
    edit(rerun, ("symmetry.robustness.missing_spots", [0.5]))
    assert rerun.planned(*CI) == {
        "perturb_patterns": 1,
        "evaluate_perturbed_random_forest": 1,
        "evaluate_perturbed_network": 3,
        "tabulate_symmetry": 1,
        "plot_symmetry": 1,
        "report": 1,
        "all": 1,
    }


SHOWN_SCAN = {"map_scan": 3, "tabulate_symmetry": 2, "plot_symmetry": 1, "report": 1, "all": 1}
"""Jobs that follow the scan."""


def test_editing_a_threshold_of_the_maps_simulates_and_trains_nothing(rerun):
    edit(rerun, ("symmetry.scan.min_confidence", 0.01))
    assert rerun.planned(*CI) == SHOWN_SCAN


def test_editing_the_dose_of_the_scan_trains_nothing(rerun):
    edit(rerun, ("symmetry.scan.gold.electrons", 5000.0))
    assert rerun.planned(*CI) == SHOWN_SCAN | {"simulate_scan": 1}


def test_the_truth_of_the_scan_is_what_the_table_counts(finished):
    """Positions and particles of the table of the confusion are those of the truth, by model."""
    results = finished.folder / "results"
    truth = pd.read_parquet(results / "scans/gold.truth.parquet")
    table = pd.read_csv(results / "tables/symmetry/table_scan_confusion.csv", dtype=str)
    counts = table[table["column"] == "Positions"].set_index("row")["value"].astype(int)
    for model in ("PE-AG-GMoE", "RF", "Ours"):
        assert counts[f"{model}, no particle"] == (truth["particle"] < 0).sum()
        assert counts[f"{model}, overlapping particles"] == truth["overlap"].sum()
        positions = counts[[row for row in counts.index if row.startswith(model)]]
        assert positions.iloc[[0, 1, 2, 3, -1]].sum() == len(truth)
    assert table["stand_in"].str.contains("simulated scan of gold nanoparticles").all()


SHOWN_UED = {
    "summarize_images": 1,
    "collect_examples": 1,
    "tabulate_ued": 3,
    "plot_ued": 7,
    "report": 1,
    "all": 1,
}
"""Jobs that follow all images, but for the networks."""


def test_editing_noise_reruns_what_follows_the_noise_alone(rerun):
    path = rerun.folder / "config/ci.yaml"
    text = path.read_text()
    assert text.count("relative_noise: [0.0, 0.5]") == 1
    path.write_text(text.replace("relative_noise: [0.0, 0.5]", "relative_noise: [0.0, 0.4]"))
    assert rerun.planned(*CI) == SHOWN_UED | {
        "detect_images": 2,
        "train_image_network": 3,
        "evaluate_image_network": 1,
        "evaluate_experiment": 2,
        "evaluate_c_vae": 1,
    }


def test_editing_a_class_reruns_its_set_of_images_alone(rerun):
    edit(rerun, ("ued.images.classes.strained_2h.augment", [{"strain": {"limit": 0.05}}]))
    assert rerun.planned(*CI) == SHOWN_UED | {
        "simulate_images": 1,
        "detect_images": 1,
        "train_image_network": 2,
        "evaluate_image_network": 1,
        "evaluate_experiment": 2,
        "tabulate_ued": 3,
        "plot_ued": 5,
    }


def test_editing_a_classifier_reruns_it_and_what_starts_from_it(rerun):
    edit(rerun, ("ued.cnn_syn.training.learning_rate", 0.004))
    assert rerun.planned(*CI) == {
        "train_image_network": 2,
        "evaluate_image_network": 1,
        "evaluate_experiment": 2,
        "tabulate_ued": 2,
        "plot_ued": 3,
        "report": 1,
        "all": 1,
    }


SHOWN_STRUCTURE_2D = {
    "collect_retrieval_examples": 1,
    "tabulate_structure_2d": 5,
    "plot_structure_2d": 5,
    "report": 1,
    "all": 1,
}
"""Jobs that follow the patterns of layers at rest, but for the networks."""


def test_editing_a_retrieval_network_reruns_it_on_both_kinds_of_patterns(rerun):
    edit(rerun, ("structure_2d.invariant.training.learning_rate", 0.001))
    assert rerun.planned(*CI) == {
        "train_retrieval_network": 2,
        "evaluate_retrieval": 2,
        "tabulate_structure_2d": 4,
        "plot_structure_2d": 1,
        "report": 1,
        "all": 1,
    }


def test_editing_a_retrieval_ablation_reruns_it_and_its_table(rerun):
    edit(rerun, ("structure_2d.ablations.small.n_heads", 2))
    assert rerun.planned(*CI) == {
        "train_retrieval_network": 1,
        "evaluate_retrieval": 1,
        "tabulate_structure_2d": 1,
        "report": 1,
        "all": 1,
    }


def test_editing_a_condition_trains_nothing(rerun):
    edit(rerun, ("structure_2d.conditions.rotated", [{"rotation": {"angle": [0.0, 180.0]}}]))
    expected = {"evaluate_retrieval": 5, "plot_structure_2d": 4}
    assert rerun.planned(*CI) == SHOWN_STRUCTURE_2D | expected


def test_editing_motion_at_rest_leaves_the_layers_and_those_in_motion(rerun):
    edit(rerun, ("structure_2d.patterns.debye_waller", 0.6))
    assert rerun.planned(*CI) == SHOWN_STRUCTURE_2D | {
        "simulate_layers": 1,
        "train_retrieval_network": 3,
        "evaluate_retrieval": 5,
    }


def test_everything_of_the_layers_follows_their_relaxation(rerun):
    edit(rerun, ("structure_2d.relax.relaxed", 1))
    assert rerun.planned(*CI) == SHOWN_STRUCTURE_2D | {
        "relax_layers": 1,
        "perturb_layers": 1,
        "make_distractors": 1,
        "simulate_layers": 2,
        "train_retrieval_network": 5,
        "evaluate_retrieval": 5,
        "summarize_layers": 1,
    }


SHOWN_CRYSTALS = {"tabulate_generation": 7, "plot_generation": 6, "report": 1, "all": 1}
"""Jobs that follow the models of crystals."""


def test_editing_a_process_trains_its_models_alone(rerun):
    edit(rerun, ("generation.diffusion.langevin.sigma_max", 5.0))
    assert rerun.planned(*CI) == {
        "train_generator": 2,
        "sample_crystals": 2,
        "evaluate_reconstruction": 2,
        "evaluate_generation": 2,
        "relax_generated": 2,
        "tabulate_generation": 4,
        "plot_generation": 2,
        "report": 1,
        "all": 1,
    }


def test_editing_the_samples_trains_nothing(rerun):
    edit(rerun, ("generation.sampling.reconstructed", 7))
    everything = dict.fromkeys(["sample_crystals", "evaluate_reconstruction"], 10)
    everything |= {"evaluate_generation": 10, "relax_generated": 4}
    planned = rerun.planned(*CI)
    assert planned == everything | SHOWN_CRYSTALS | {"plot_generation": 3}


def test_editing_a_tolerance_samples_nothing(rerun):
    edit(rerun, ("generation.evaluation.tolerances.stol", 0.4))
    everything = dict.fromkeys(["evaluate_reconstruction", "evaluate_generation"], 10)
    assert rerun.planned(*CI) == everything | SHOWN_CRYSTALS | {"relax_generated": 4}


def test_editing_the_relaxation_judges_nothing_else_again(rerun):
    edit(rerun, ("generation.ground_state.max_steps", 4))
    assert rerun.planned(*CI) == {
        "relax_generated": 4,
        "tabulate_generation": 1,
        "plot_generation": 1,
        "report": 1,
        "all": 1,
    }


def test_another_split_of_crystals_reruns_the_study(rerun):
    edit(rerun, ("generation.crystals.test", 0.3))
    planned = rerun.planned(*CI)
    assert planned["prepare_crystals"] == planned["fingerprint_crystals"] == 1
    assert planned["train_generator"] == 10
    assert "retrieve_structures" not in planned
    assert "train_network" not in planned


def test_another_split_simulates_nothing_again(rerun):
    edit(rerun, ("split.test", 0.3))
    expected = {"split_structures": 1, "summarize_dataset": 1, "perturb_patterns": 1}
    assert rerun.planned(*CI) == OF_ALL_MODELS | ALL_SHOWN | expected


def test_everything_follows_the_labels(rerun):
    edit(rerun, ("structures.symprec", 0.02))
    planned = rerun.planned(*CI)
    assert "retrieve_structures" not in planned
    assert set(planned) >= {"clean_structures", "simulate_patterns", *OF_ALL_MODELS}


def test_other_shards_and_threads_give_equal_bytes(finished, tmp_path):
    """Same config, same result: whatever the shards and threads that share the work."""
    project = copy_project(tmp_path)
    edit(project, ("simulate.shards", 3))
    edit(project, ("ued.images.shards", 3))
    edit(project, ("max_threads", 2))
    result = project.snakemake(*OF_EACH_STUDY, *CI)
    assert result.returncode == 0, result.stdout + result.stderr
    check_each_study(tmp_path, finished.folder)


def test_killed_run_is_finished_by_the_next(finished, tmp_path):
    """Kill all in the second of two shards: the next run makes that, and ends with equal bytes."""
    project = copy_project(tmp_path)
    target = "results/evaluation/symmetry/ours.parquet"
    logs = project.folder / "logs/simulate_patterns"
    process = subprocess.Popen(
        [sys.executable, "-m", "snakemake", "--cores", "1", target, *CI],
        cwd=project.folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 600
    while len(list(logs.glob("*.log"))) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    unlocked = project.snakemake("--unlock", *CI)
    assert unlocked.returncode == 0, unlocked.stderr
    planned = project.planned(target, *CI)
    assert "clean_structures" not in planned
    assert planned["simulate_patterns"] == 1
    result = project.snakemake(target, *CI)
    assert result.returncode == 0, result.stdout + result.stderr
    expected, found = products(finished.folder), products(tmp_path)
    assert target in {f"results/{name}" for name in found}
    assert found == {name: expected[name] for name in found}


def test_second_snakemake_in_one_folder_is_refused(project):
    """The first goes on to its end."""
    target = "results/structures/prototypes/structures.parquet"
    first = subprocess.Popen(
        [sys.executable, "-m", "snakemake", target, "--cores", "1", *CI],
        cwd=project.folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while not list((project.folder / ".snakemake").glob("locks/*")):
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    second = project.snakemake(target, *CI)
    assert second.returncode != 0
    assert "cannot be locked" in second.stdout + second.stderr
    assert "Traceback" not in second.stdout + second.stderr
    assert first.wait(timeout=600) == 0
    assert (project.folder / target).exists()


def test_failed_job_shows_one_sentence_and_its_log(rerun):
    """A run that would go on with nothing left stops, and says why."""
    edit(rerun, ("structures.max_sites", 1))
    result = rerun.snakemake(*CI)
    output = result.stdout + result.stderr
    assert result.returncode != 0
    assert re.search(r"Error: .*too_many_sites", output)
    assert "Traceback" not in output
