LAYERS = config["structure_2d"]
LAYERS_DATASET = LAYERS["dataset"]
LAYERS_HARDWARE = LAYERS["hardware"] | {"devices": 1, "nodes": 1, "workers": 0}
LAYERS_FOLDER = f"results/structures/{LAYERS_DATASET}"
LAYERS_PATTERNS = f"results/patterns/{LAYERS_DATASET}"
LAYERS_ABLATIONS = LAYERS["ablations"]
RETRIEVAL_MODELS = ["dd2d", "dd2d_perturbed", "invariant", "invariant_perturbed"]
RETRIEVAL_TRAINED = RETRIEVAL_MODELS + [
    f"ablations/{name}" for name in LAYERS_ABLATIONS
]

# The predictions that each table and figure reads.
STRUCTURE_2D_TABLES = {
    "1": RETRIEVAL_MODELS,
    "conditions": RETRIEVAL_MODELS,
    "galleries": RETRIEVAL_MODELS,
    "families": RETRIEVAL_MODELS,
} | (
    {
        "ablations": [
            "dd2d",
            *(f"ablations/{name}" for name in LAYERS_ABLATIONS),
        ]
    }
    if LAYERS_ABLATIONS
    else {}
)
STRUCTURE_2D_FIGURES = {
    "1": [],
    "2": [],
    "3": ["dd2d"],
    "4": [],
    "retrieval": RETRIEVAL_MODELS,
}
STRUCTURE_2D_FIGURES_SHOW = {"1": "dd2d"}
STRUCTURE_2D_FIGURES_WITH_EXAMPLES = ["2", "4"]


wildcard_constraints:
    retrieval_network=r"[a-z0-9_]+|ablations/[a-z0-9_]+",
    motion="unperturbed|perturbed",


rule prepare_layers:
    input:
        cleaned="results/structures/{dataset}/cleaned.parquet",
    output:
        layers="results/structures/{dataset}/layers.parquet",
        rejected="results/structures/{dataset}/layers.rejected.parquet",
        run="results/structures/{dataset}/layers.run.json",
    log:
        "logs/prepare_layers/{dataset}.log",
    priority: 2  # trainings wait for it
    conda:
        "../../envs/structures.yaml"
    threads: at_most(8)
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        settings=LAYERS["layers"] | {"duplicates": config["structures"]["duplicates"]},
        max_rejected_fraction=config["max_rejected_fraction"],
        seed=config["seed"],
    script:
        "../scripts/prepare_layers.py"


rule relax_layers:
    input:
        layers="results/structures/{dataset}/layers.parquet",
    output:
        relaxed="results/structures/{dataset}/relaxed.parquet",
        rejected="results/structures/{dataset}/relaxed.rejected.parquet",
        run="results/structures/{dataset}/relaxed.run.json",
    log:
        "logs/relax_layers/{dataset}.log",
    priority: 2  # trainings wait for it
    conda:
        "../../envs/augmentation.yaml"
    threads: at_most(16)
    resources:
        mem_mb=lambda wildcards, attempt: 16000 * attempt,
        runtime=lambda wildcards, attempt: 240 * attempt,
    params:
        settings=LAYERS["relax"],
        calculator=LAYERS["calculator"],
        seed=config["seed"],
    script:
        "../scripts/relax_layers.py"


rule perturb_layers:
    input:
        layers="results/structures/{dataset}/relaxed.parquet",
    output:
        perturbed="results/structures/{dataset}/perturbed.parquet",
        rejected="results/structures/{dataset}/perturbed.rejected.parquet",
        run="results/structures/{dataset}/perturbed.run.json",
    log:
        "logs/perturb_layers/{dataset}.log",
    priority: 2  # trainings wait for it
    conda:
        "../../envs/augmentation.yaml"
    threads: at_most(16)
    resources:
        mem_mb=lambda wildcards, attempt: 16000 * attempt,
        runtime=lambda wildcards, attempt: 480 * attempt,
    params:
        settings=LAYERS["perturb"],
        calculator=LAYERS["calculator"],
        seed=config["seed"],
    script:
        "../scripts/perturb_layers.py"


rule make_distractors:
    input:
        layers="results/structures/{dataset}/relaxed.parquet",
    output:
        distractors="results/structures/{dataset}/distractors.parquet",
        run="results/structures/{dataset}/distractors.run.json",
    log:
        "logs/make_distractors/{dataset}.log",
    conda:
        "../../envs/augmentation.yaml"
    threads: at_most(4)
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        settings=LAYERS["distractors"],
        seed=config["seed"],
    script:
        "../scripts/make_distractors.py"


rule simulate_layers:
    input:
        layers=lambda wildcards: moving_layers(wildcards.motion),
    output:
        store=directory(f"{LAYERS_PATTERNS}/{{motion}}"),
        rejected=f"{LAYERS_PATTERNS}/{{motion}}.rejected.parquet",
        run=f"{LAYERS_PATTERNS}/{{motion}}.run.json",
    log:
        "logs/simulate_layers/{motion}.log",
    priority: 2  # trainings wait for it
    conda:
        "../../envs/simulation.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        settings=lambda wildcards: layer_pattern_settings(wildcards.motion),
        seed=config["seed"],
    script:
        "../scripts/simulate_layers.py"


rule train_retrieval_network:
    input:
        patterns=lambda wildcards: patterns_of_network(wildcards.retrieval_network),
        layers=f"{LAYERS_FOLDER}/relaxed.parquet",
    output:
        model=directory("results/models/structure_2d/{retrieval_network}"),
    log:
        "logs/train_retrieval_network/{retrieval_network}.log",
    priority: 1  # long; what is left to the end leaves cores idle
    conda:
        "../../envs/training.yaml"
    threads: LAYERS_HARDWARE["threads"]
    resources:
        **training_resources(LAYERS_HARDWARE),
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=lambda wildcards, attempt: 720 * attempt,
    params:
        name=lambda wildcards: retrieval_kind(wildcards.retrieval_network),
        settings=lambda wildcards: retrieval_settings(wildcards.retrieval_network),
        hardware=LAYERS_HARDWARE,
        seed=config["seed"],
    script:
        "../scripts/train_retrieval_network.py"


rule evaluate_retrieval:
    input:
        model="results/models/structure_2d/{retrieval_network}",
        layers=f"{LAYERS_FOLDER}/relaxed.parquet",
        patterns=lambda wildcards: patterns_of_network(wildcards.retrieval_network),
        distractors=f"{LAYERS_FOLDER}/distractors.parquet",
    output:
        predictions="results/evaluation/structure_2d/{retrieval_network}.parquet",
        run="results/evaluation/structure_2d/{retrieval_network}.run.json",
    log:
        "logs/evaluate_retrieval/{retrieval_network}.log",
    conda:
        "../../envs/training.yaml"
    threads: LAYERS_HARDWARE["threads"]
    resources:
        **gpu_resources(LAYERS_HARDWARE["device"]),
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        settings={key: LAYERS[key] for key in ("conditions", "candidates")},
        simulation=LAYERS["patterns"],
        hardware=LAYERS_HARDWARE,
        seed=config["seed"],
    script:
        "../scripts/evaluate_retrieval.py"


rule summarize_layers:
    input:
        layers=f"{LAYERS_FOLDER}/relaxed.parquet",
    output:
        dataset="results/evaluation/structure_2d/dataset.parquet",
        run="results/evaluation/structure_2d/dataset.run.json",
    log:
        "logs/summarize_layers.log",
    conda:
        "../../envs/training.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        seed=config["seed"],
    script:
        "../scripts/summarize_layers.py"


rule collect_retrieval_examples:
    input:
        model="results/models/structure_2d/dd2d",
        layers=f"{LAYERS_FOLDER}/relaxed.parquet",
        patterns=f"{LAYERS_PATTERNS}/unperturbed",
        predictions="results/evaluation/structure_2d/dd2d.parquet",
    output:
        examples="results/evaluation/structure_2d/examples.parquet",
        run="results/evaluation/structure_2d/examples.run.json",
    log:
        "logs/collect_retrieval_examples.log",
    conda:
        "../../envs/training.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        seed=config["seed"],
    script:
        "../scripts/collect_retrieval_examples.py"


rule tabulate_structure_2d:
    input:
        dataset="results/evaluation/structure_2d/dataset.parquet",
        predictions=lambda wildcards: predictions_of(
            "structure_2d", STRUCTURE_2D_TABLES[wildcards.n]
        ),
    output:
        csv=in_report("results/tables/structure_2d/table_{n}.csv"),
        markdown="results/tables/structure_2d/table_{n}.md",
        run="results/tables/structure_2d/table_{n}.run.json",
    log:
        "logs/tabulate_structure_2d/table_{n}.log",
    conda:
        "../../envs/evaluation.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        context=lambda wildcards: structure_2d_context(wildcards.n),
        seed=config["seed"],
    script:
        "../scripts/tabulate_structure_2d.py"


rule plot_structure_2d:
    input:
        predictions=lambda wildcards: predictions_of(
            "structure_2d", STRUCTURE_2D_FIGURES[wildcards.n]
        ),
        examples=lambda wildcards: shown_retrieval_examples(wildcards.n),
        model=lambda wildcards: shown_retrieval_network(wildcards.n),
    output:
        svg=in_report("results/figures/structure_2d/figure_{n}.svg"),
        png="results/figures/structure_2d/figure_{n}.png",
        csv="results/figures/structure_2d/figure_{n}.csv",
        run="results/figures/structure_2d/figure_{n}.run.json",
    log:
        "logs/plot_structure_2d/figure_{n}.log",
    conda:
        "../../envs/evaluation.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        context=lambda wildcards: structure_2d_context(wildcards.n),
        seed=config["seed"],
    script:
        "../scripts/plot_structure_2d.py"
