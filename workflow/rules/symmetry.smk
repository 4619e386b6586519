SYMMETRY_MODELS = ["random_forest"]
# The models that each table and figure of the study reads; those without read the data set alone.
SYMMETRY_TABLES = {
    1: SYMMETRY_MODELS,
    2: [],
    3: SYMMETRY_MODELS,
    4: SYMMETRY_MODELS,
    5: [],
}
SYMMETRY_FIGURES = {1: SYMMETRY_MODELS, 3: [], 4: []}
# Which of them take the vote over several zone axes.
SYMMETRY_VOTES = {"table": {3, 4}, "figure": {1}}


rule train_random_forest:
    input:
        patterns=PATTERNS,
        structures=STRUCTURES,
    output:
        model=directory("results/models/symmetry/random_forest"),
    log:
        "logs/train_random_forest.log",
    conda:
        "../../envs/training.yaml"
    threads: 32
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
    threads: 8
    resources:
        mem_mb=lambda wildcards, attempt: 16000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        seed=config["seed"],
    script:
        "../scripts/evaluate_random_forest.py"


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
        predictions=lambda wildcards: predictions_of(
            "symmetry", SYMMETRY_TABLES[int(wildcards.n)]
        ),
    output:
        csv="results/tables/symmetry/table_{n}.csv",
        markdown="results/tables/symmetry/table_{n}.md",
        run="results/tables/symmetry/table_{n}.run.json",
    log:
        "logs/tabulate_symmetry/table_{n}.log",
    conda:
        "../../envs/evaluation.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        context=lambda wildcards: table_context(
            int(wildcards.n) in SYMMETRY_VOTES["table"]
        ),
        seed=config["seed"],
    script:
        "../scripts/tabulate_symmetry.py"


rule plot_symmetry:
    input:
        dataset="results/evaluation/symmetry/dataset.parquet",
        predictions=lambda wildcards: predictions_of(
            "symmetry", SYMMETRY_FIGURES[int(wildcards.n)]
        ),
    output:
        svg="results/figures/symmetry/figure_{n}.svg",
        png="results/figures/symmetry/figure_{n}.png",
        csv="results/figures/symmetry/figure_{n}.csv",
        run="results/figures/symmetry/figure_{n}.run.json",
    log:
        "logs/plot_symmetry/figure_{n}.log",
    conda:
        "../../envs/evaluation.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        context=lambda wildcards: table_context(
            int(wildcards.n) in SYMMETRY_VOTES["figure"]
        ),
        seed=config["seed"],
    script:
        "../scripts/plot_symmetry.py"
