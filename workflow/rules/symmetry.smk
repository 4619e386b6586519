SYMMETRY_NETWORKS = ["pe_ag_gmoe", "mvof_ml", "ours"]
SYMMETRY_MODELS = ["random_forest", *SYMMETRY_NETWORKS]
TELL_SPACE_GROUPS = ["random_forest", "pe_ag_gmoe", "ours"]
ABLATIONS = config["symmetry"]["ablations"]
SYMMETRY_TRAINED = [*SYMMETRY_MODELS, *ABLATIONS]
HARDWARE = config["symmetry"]["hardware"]


wildcard_constraints:
    network="|".join([*SYMMETRY_NETWORKS, *ABLATIONS]),


# The models whose predictions each table and figure reads; those without read the data set alone.
# Words name what goes beyond the paper.
SYMMETRY_TABLES = {
    "1": SYMMETRY_MODELS,
    "2": ["pe_ag_gmoe"],
    "3": SYMMETRY_MODELS,
    "4": TELL_SPACE_GROUPS,
    "5": [],
    "6": [],
    "calibration": SYMMETRY_MODELS,
    "robustness": SYMMETRY_MODELS,
    "prototypes": SYMMETRY_MODELS,
    "scan": SCAN["models"],
}
if SCAN["source"] == "gold":
    SYMMETRY_TABLES["scan_confusion"] = SCAN["models"]
if ABLATIONS:
    ablated = dict.fromkeys(ablation["of"] for ablation in ABLATIONS.values())
    SYMMETRY_TABLES["ablations"] = [*ablated, *ABLATIONS]
SYMMETRY_FIGURES = {
    "1": SYMMETRY_MODELS,
    "2": SCAN["models"],
    "3": [],
    "4": [],
    "5": [],
    "6": [],
    "7": [],
    "8": [],
    "zone_axes": SYMMETRY_MODELS,
    "calibration": SYMMETRY_MODELS,
    "robustness": SYMMETRY_MODELS,
}
# Which of them show a scan, and so maps in place of predictions; which take the vote over several
# zone axes; and which show PE-AG-GMoE itself.
SHOW_SCAN = {"table": ["scan", "scan_confusion"], "figure": ["2"]}
SYMMETRY_VOTES = {"table": ["3", "4", "prototypes", "ablations"], "figure": ["1"]}
SHOW_PE_AG_GMOE = {"table": ["6"], "figure": ["5", "6", "7", "8"]}


rule train_random_forest:
    input:
        patterns=PATTERNS,
        structures=STRUCTURES,
    output:
        model=directory("results/models/symmetry/random_forest"),
    log:
        "logs/train_random_forest.log",
    priority: 2  # on all cores, which trainings beside each other do not leave it
    conda:
        "../../envs/training.yaml"
    threads: at_most(32)
    resources:
        mem_mb=lambda wildcards, attempt: 32000 * attempt,
        runtime=lambda wildcards, attempt: 240 * attempt,
    params:
        settings=config["symmetry"]["random_forest"],
        g_max=config["simulate"]["g_max"],
        seed=config["seed"],
    script:
        "../scripts/train_random_forest.py"


rule evaluate_random_forest:
    input:
        model="results/models/symmetry/random_forest",
        patterns=PATTERNS,
        structures=STRUCTURES,
    output:
        predictions="results/evaluation/symmetry/random_forest.parquet",
        run="results/evaluation/symmetry/random_forest.run.json",
    log:
        "logs/evaluate_random_forest.log",
    conda:
        "../../envs/training.yaml"
    threads: at_most(8)
    resources:
        mem_mb=lambda wildcards, attempt: 16000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        seed=config["seed"],
    script:
        "../scripts/evaluate_random_forest.py"


rule train_network:
    input:
        patterns=PATTERNS,
        structures=STRUCTURES,
    output:
        model=directory("results/models/symmetry/{network}"),
    log:
        "logs/train_network/{network}.log",
    priority: 1  # long; what is left to the end leaves cores idle
    conda:
        "../../envs/training.yaml"
    threads: HARDWARE["threads"] * HARDWARE["devices"]
    resources:
        **training_resources(HARDWARE),
        mem_mb=lambda wildcards, attempt: 16000 * attempt * HARDWARE["devices"],
        runtime=lambda wildcards, attempt: 1440 * attempt,
    params:
        name=lambda wildcards: network_settings(wildcards.network)[0],
        settings=lambda wildcards: network_settings(wildcards.network)[1],
        max_spots=config["symmetry"]["max_spots"],
        hardware=HARDWARE,
        seed=config["seed"],
    script:
        "../scripts/train_network.py"


rule evaluate_network:
    input:
        model="results/models/symmetry/{network}",
        patterns=PATTERNS,
        structures=STRUCTURES,
    output:
        predictions="results/evaluation/symmetry/{network}.parquet",
        run="results/evaluation/symmetry/{network}.run.json",
    log:
        "logs/evaluate_network/{network}.log",
    conda:
        "../../envs/training.yaml"
    threads: HARDWARE["threads"]
    resources:
        **gpu_resources(HARDWARE["device"]),
        mem_mb=lambda wildcards, attempt: 16000 * attempt,
        runtime=lambda wildcards, attempt: 240 * attempt,
    params:
        hardware=HARDWARE,
        seed=config["seed"],
    script:
        "../scripts/evaluate_network.py"


rule perturb_patterns:
    input:
        patterns="results/patterns/{dataset}/{engine}",
        structures="results/structures/{dataset}/structures.parquet",
    output:
        store=directory("results/patterns/{dataset}/{engine}.perturbed"),
        conditions="results/patterns/{dataset}/{engine}.perturbed.parquet",
        run="results/patterns/{dataset}/{engine}.perturbed.run.json",
    log:
        "logs/perturb_patterns/{dataset}.{engine}.log",
    conda:
        "../../envs/simulation.yaml"
    threads: at_most(16)
    resources:
        **gpu_resources(config["simulate"]["device"]),
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        settings=config["symmetry"]["robustness"],
        simulate=simulation_settings(),
        seed=config["seed"],
    script:
        "../scripts/perturb_patterns.py"


use rule evaluate_random_forest as evaluate_perturbed_random_forest with:
    input:
        model="results/models/symmetry/random_forest",
        patterns=f"{SIMULATED}.perturbed",
        structures=STRUCTURES,
    output:
        predictions="results/evaluation/symmetry/perturbed/random_forest.parquet",
        run="results/evaluation/symmetry/perturbed/random_forest.run.json",
    log:
        "logs/evaluate_perturbed_random_forest.log",


use rule evaluate_network as evaluate_perturbed_network with:
    input:
        model="results/models/symmetry/{network}",
        patterns=f"{SIMULATED}.perturbed",
        structures=STRUCTURES,
    output:
        predictions="results/evaluation/symmetry/perturbed/{network}.parquet",
        run="results/evaluation/symmetry/perturbed/{network}.run.json",
    log:
        "logs/evaluate_perturbed_network/{network}.log",


rule summarize_dataset:
    input:
        patterns=PATTERNS,
        structures=STRUCTURES,
    output:
        dataset="results/evaluation/symmetry/dataset.parquet",
        run="results/evaluation/symmetry/dataset.run.json",
    log:
        "logs/summarize_dataset.log",
    conda:
        "../../envs/training.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        seed=config["seed"],
    script:
        "../scripts/summarize_dataset.py"


rule tabulate_symmetry:
    input:
        dataset="results/evaluation/symmetry/dataset.parquet",
        predictions=lambda wildcards: shown_predictions("table", wildcards.n),
        conditions=lambda wildcards: shown_conditions("table", wildcards.n),
        model=lambda wildcards: shown_model("table", wildcards.n),
    output:
        csv=in_report("results/tables/symmetry/table_{n}.csv"),
        markdown="results/tables/symmetry/table_{n}.md",
        run="results/tables/symmetry/table_{n}.run.json",
    log:
        "logs/tabulate_symmetry/table_{n}.log",
    conda:
        "../../envs/evaluation.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        context=lambda wildcards: symmetry_context("table", wildcards.n),
        seed=config["seed"],
    script:
        "../scripts/tabulate_symmetry.py"


rule plot_symmetry:
    input:
        dataset="results/evaluation/symmetry/dataset.parquet",
        predictions=lambda wildcards: shown_predictions("figure", wildcards.n),
        conditions=lambda wildcards: shown_conditions("figure", wildcards.n),
        model=lambda wildcards: shown_model("figure", wildcards.n),
    output:
        svg=in_report("results/figures/symmetry/figure_{n}.svg"),
        png="results/figures/symmetry/figure_{n}.png",
        csv="results/figures/symmetry/figure_{n}.csv",
        run="results/figures/symmetry/figure_{n}.run.json",
    log:
        "logs/plot_symmetry/figure_{n}.log",
    conda:
        "../../envs/evaluation.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        context=lambda wildcards: symmetry_context("figure", wildcards.n),
        seed=config["seed"],
    script:
        "../scripts/plot_symmetry.py"
