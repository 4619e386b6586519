"""Dry runs: every config and profile gives a valid DAG, quickly and without heavy imports."""

import os
import re
import subprocess
import sys

import pytest

SCALES = ["ci", "desk", "bench", "paper"]
REPORT_RULES = {
    "retrieve_structures": 3,
    "clean_structures": 3,
    "split_structures": 1,
    "collect_patterns": 1,
    "perturb_patterns": 1,
    "summarize_dataset": 1,
    "train_random_forest": 1,
    "evaluate_random_forest": 1,
    "evaluate_perturbed_random_forest": 1,
    "evaluate_perturbed_network": 3,
    "simulate_scan": 1,
    "map_scan": 3,
    "plot_symmetry": 11,
    "calculate_phonons": 2,
    "detect_images": 2,
    "simulate_experiment": 1,
    "train_image_network": 3,
    "evaluate_image_network": 1,
    "evaluate_experiment": 2,
    "evaluate_c_vae": 1,
    "summarize_images": 1,
    "collect_examples": 1,
    "tabulate_ued": 3,
    "plot_ued": 7,
    "prepare_layers": 1,
    "relax_layers": 1,
    "perturb_layers": 1,
    "make_distractors": 1,
    "simulate_layers": 2,
    "summarize_layers": 1,
    "collect_retrieval_examples": 1,
    "plot_structure_2d": 5,
    "trace_crystal": 1,
    "tabulate_generation": 7,
    "plot_generation": 6,
    "report": 1,
    "all": 1,
}
OF_THE_NETWORKS = {
    "train_network": 3,
    "evaluate_network": 3,
    "tabulate_symmetry": 11,
    "train_retrieval_network": 4,
    "evaluate_retrieval": 4,
    "tabulate_structure_2d": 4,
}
"""Jobs of a config without ablations; each is one more of the first two of its study, and all have
one table."""
OF_THE_CRYSTALS = {
    "prepare_crystals": 1,
    "fingerprint_crystals": 1,
    "summarize_crystals": 1,
    "train_generator": 10,
    "sample_crystals": 10,
    "evaluate_reconstruction": 10,
    "evaluate_generation": 10,
}
"""Jobs of each data set of the generation study: eight models, two of them on a second split."""


def test_default_dag(project):
    shards = {"simulate_patterns": 2, "simulate_images": 2}
    expected = REPORT_RULES | OF_THE_NETWORKS | OF_THE_CRYSTALS | shards
    assert project.planned() == expected | {"relax_generated": 4}


def test_each_data_set_of_crystals_has_models_of_its_own(project):
    config = {"generation": {"datasets": ["prototypes", "perovskites"], "disjoint": ["ours"]}}
    config["generation"]["ground_state"] = {"models": ["ours"]}
    planned = project.planned("--configfile", project.write_config("two", config))
    of_models = {rule: 18 for rule, n in OF_THE_CRYSTALS.items() if n > 1}
    of_sets = {rule: 2 for rule, n in OF_THE_CRYSTALS.items() if n == 1}
    of_sets |= {"retrieve_structures": 3, "clean_structures": 3, "relax_generated": 1}
    assert (of_models | of_sets).items() <= planned.items()


def test_files_with_a_url_need_not_be_there(project):
    table = {"source": "structure_table", "structure_column": "cif", "id_column": "id"}
    table |= {"paths": ["a.csv", "b.csv"], "urls": ["http://127.0.0.1:9/a.csv", None]}
    config = {"datasets": {"mine": table}, "generation": {"datasets": ["mine"]}}
    config["generation"]["ground_state"] = {"dataset": "mine"}
    path = project.write_config("url", config)
    result = project.snakemake("-n", "--configfile", path, DIFFRACTORY_DATA="/nowhere")
    assert result.returncode != 0
    assert "/nowhere/b.csv, which is not there" in result.stdout + result.stderr
    table["urls"][1] = "http://127.0.0.1:9/b.csv"
    project.write_config("url", config)
    assert project.planned("--configfile", path, DIFFRACTORY_DATA="/nowhere")["train_generator"]


def test_ablations_are_networks_and_a_table(project):
    ablations = {"one": {"of": "ours"}, "two": {"of": "ours", "training": {"epochs": 1}}}
    of_layers = {"structure_2d": {"ablations": {"deep": {"n_layers": 3}}}}
    path = project.write_config("ablations", {"symmetry": {"ablations": ablations}} | of_layers)
    more = {"train_network": 5, "evaluate_network": 5, "tabulate_symmetry": 12}
    more |= {"train_retrieval_network": 5, "evaluate_retrieval": 5, "tabulate_structure_2d": 5}
    assert project.planned("--configfile", path).items() >= more.items()


def test_augmentation_of_any_data_set_is_a_stage_of_its_own(project):
    steps = {
        "structures": [{"repeat": [2, 1, 1]}, {"vacancies": {"fraction": [0.0, 0.1]}}],
        "patterns": [{"missing_spots": {"fraction": 0.1}}],
    }
    before = project.planned()
    path = project.write_config("augmented", {"augment": steps})
    more = {"augment_structures": 1, "augment_patterns": 1}
    assert project.planned("--configfile", path) == before | more


def test_own_series_is_read_in_place_of_the_stand_in(project):
    data = str(project.folder / "data")
    path = project.write_config("series", {"ued": {"experiment": {"source": "folder"}}})
    missing = project.snakemake("-n", "--configfile", path, DIFFRACTORY_DATA=data)
    assert missing.returncode != 0
    expected = f"reads the folder {data}/ued_series, which is not there: set DIFFRACTORY_DATA"
    assert expected in missing.stdout + missing.stderr
    (project.folder / "data/ued_series").mkdir(parents=True)
    planned = project.planned("--configfile", path, DIFFRACTORY_DATA=data)
    assert planned["read_experiment"] == 1
    assert "simulate_experiment" not in planned


def test_own_scan_is_mapped_in_place_of_the_stand_in(project):
    """Its truth is not known, and so there is no table of the confusion."""
    data = str(project.folder / "data")
    path = project.write_config("scan", {"symmetry": {"scan": {"source": "file"}}})
    missing = project.snakemake("-n", "--configfile", path, DIFFRACTORY_DATA=data)
    assert missing.returncode != 0
    expected = f"reads {data}/scan.zspy, which is not there: set DIFFRACTORY_DATA"
    assert expected in missing.stdout + missing.stderr
    (project.folder / "data/scan.zspy").mkdir(parents=True)
    planned = project.planned("--configfile", path, DIFFRACTORY_DATA=data)
    assert "simulate_scan" not in planned
    assert planned["map_scan"] == 3
    assert planned["tabulate_symmetry"] == OF_THE_NETWORKS["tabulate_symmetry"] - 1


def test_chosen_models_map_the_scan(project):
    path = project.write_config("models", {"symmetry": {"scan": {"models": ["mvof_ml"]}}})
    assert project.planned("--configfile", path)["map_scan"] == 1


@pytest.mark.parametrize(
    ("key", "steps", "sentence"),
    [
        (
            "ued.images.every",
            [{"vacancy": {"fraction": 0.1}}],
            "did you mean ued.images.every.0.vacancies?",
        ),
        (
            "ued.images.every",
            [{"strain": {"in_plane": True}}],
            "ued.images.every.0.strain.limit is missing",
        ),
        (
            "ued.detector.steps",
            [{"poisson": -1.0}],
            "ued.detector.steps.0.poisson must be at least 0",
        ),
    ],
)
def test_wrong_step_is_refused_by_name(project, key, steps, sentence):
    config: dict = {}
    section = config
    *sections, last = key.split(".")
    for name in sections:
        section = section.setdefault(name, {})
    section[last] = steps
    result = project.snakemake("-n", "--configfile", project.write_config("steps", config))
    assert result.returncode != 0
    assert sentence in result.stdout + result.stderr


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("profile", [(), ("--profile", "slurm")], ids=["local", "slurm"])
def test_every_scale_is_a_valid_dag_of_few_jobs(project, scale, profile):
    jobs = project.planned("--configfile", f"config/{scale}.yaml", *profile)
    assert all(jobs[rule] >= n for rule, n in (REPORT_RULES | OF_THE_CRYSTALS).items())
    assert sum(jobs.values()) < 300


def test_slurm_profile_is_not_overruled_by_the_default_one(project):
    result = project.snakemake("-n", "--profile", "slurm", "--configfile", "config/paper.yaml")
    assert result.returncode == 0, result.stderr
    default = (project.folder / "profiles/default/config.yaml").read_text()
    slurm = (project.folder / "profiles/slurm/config.yaml").read_text()
    keys = [
        {line.split(":")[0] for line in text.splitlines() if line[:1].isalpha()}
        for text in (default, slurm)
    ]
    assert keys[0].isdisjoint(keys[1])
    assert "executor" in keys[1]


@pytest.mark.parametrize(
    ("gpu_request", "asked"),
    [
        ("gpu", {"gpu=4"}),
        ("gpu:a100", {"gpu=4", "gpu_model=a100"}),
        ("gres", {"gres=gpu:2"}),
        ("gres:a100", {"gres=gpu:a100:2"}),
    ],
)
def test_training_asks_for_gpus_as_the_site_wants(project, gpu_request, asked):
    hardware = {"device": "cuda", "devices": 2, "nodes": 2, "threads": 3}
    config = {"slurm": {"gpu_request": gpu_request}, "symmetry": {"hardware": hardware}}
    path = project.write_config("gpu", config)
    model = "results/models/symmetry/ours"
    result = project.snakemake("-n", model, "--configfile", path, cores=8)
    rule = result.stdout.split("rule train_network:")[1].split("rule ")[0]
    assert "threads: 6" in rule
    resources = set(rule.split("resources: ")[1].splitlines()[0].split(", "))
    rest = {"tasks=4", "nodes=2", "mpi=srun", "cpus_per_task=3", "tasks_per_gpu=1"}
    assert asked | rest == {r for r in resources if re.match("gpu|gres|tasks|nodes|mpi|cpus", r)}


def test_a_cpu_run_asks_for_no_gpu(project):
    lines = project.snakemake("-n").stdout.splitlines()
    resources = [line for line in lines if line.strip().startswith("resources:")]
    assert len(resources) > 40
    assert not re.search("gpu|gres|mpi", " ".join(resources))


def test_number_of_jobs_does_not_grow_with_the_materials(project):
    config = {"datasets": {"prototypes": {"count": 50_000}}}
    large = project.planned("--configfile", project.write_config("large", config))
    assert large == project.planned()


def test_dry_run_imports_nothing_heavy(project):
    """Forbid the import of everything but snakemake's own needs, and plan all the same."""
    blocker = project.folder / "blocked"
    blocker.mkdir()
    heavy = "torch numba pymatgen zarr sklearn matplotlib ase scipy phonopy chgnet finufft abtem"
    for package in heavy.split():
        (blocker / f"{package}.py").write_text(f"raise ImportError('{package} was imported')\n")
    jobs = project.planned(PYTHONPATH=str(blocker))
    assert jobs["simulate_patterns"] == 2
    check = subprocess.run(
        [sys.executable, "-c", "import zarr"],
        env={**os.environ, "PYTHONPATH": str(blocker)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "zarr was imported" in check.stderr


def test_wrong_config_key_is_refused_by_name(project):
    path = project.write_config("wrong", {"simulate": {"thicknes": [100.0]}})
    result = project.snakemake("-n", "--configfile", path)
    assert result.returncode != 0
    assert "simulate.thicknes: did you mean simulate.thicknesses?" in result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr


def test_studies_may_share_a_data_set(project):
    crystals = {"datasets": ["prototypes"], "ground_state": {"dataset": "prototypes"}}
    config = {"structure_2d": {"dataset": "prototypes"}, "generation": crystals}
    path = project.write_config("shared", config)
    planned = project.planned("--configfile", path)
    assert (planned["retrieve_structures"], planned["clean_structures"]) == (1, 1)


@pytest.mark.parametrize(
    "config",
    [
        {"dataset": "perov_5"},
        {"structure_2d": {"dataset": "perov_5"}},
        {"generation": {"datasets": ["perovskites", "perov_5"]}},
    ],
    ids=["symmetry", "structure_2d", "generation"],
)
def test_missing_data_file_is_named_with_its_variable(project, config):
    path = project.write_config("missing", config)
    result = project.snakemake("-n", "--configfile", path, DIFFRACTORY_DATA="/nowhere")
    output = result.stdout + result.stderr
    assert result.returncode != 0
    assert "/nowhere/perov_5/val.csv, which is not there: set DIFFRACTORY_DATA" in output
    assert "Traceback" not in output


def test_no_api_key_is_one_sentence(project):
    environment = {key: value for key, value in os.environ.items() if key != "MP_API_KEY"}
    structures = "results/structures/materials_project/structures.parquet"
    command = [sys.executable, "-m", "snakemake", "--cores", "1", structures, "--config"]
    result = subprocess.run(
        [*command, "dataset=materials_project"],
        cwd=project.folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    output = result.stdout + result.stderr
    assert result.returncode != 0
    assert "MP_API_KEY" in output
    assert "Traceback" not in output
