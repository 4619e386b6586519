rule retrieve_structures:
    input:
        files=lambda wildcards: source_files(wildcards.dataset),
    output:
        retrieved="results/structures/{dataset}/retrieved.parquet",
        run="results/structures/{dataset}/retrieved.run.json",
    log:
        "logs/retrieve_structures/{dataset}.log",
    priority: 2  # a missing key or network shows at once, and not after other studies' trainings
    conda:
        "../../envs/structures.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 240 * attempt,
    params:
        settings=lambda wildcards: config["datasets"][wildcards.dataset],
        seed=config["seed"],
    script:
        "../scripts/retrieve_structures.py"


rule clean_structures:
    input:
        retrieved="results/structures/{dataset}/retrieved.parquet",
    output:
        cleaned="results/structures/{dataset}/cleaned.parquet",
        rejected="results/structures/{dataset}/rejected.parquet",
        run="results/structures/{dataset}/cleaned.run.json",
    log:
        "logs/clean_structures/{dataset}.log",
    priority: 2  # trainings wait for it
    conda:
        "../../envs/structures.yaml"
    threads: at_most(8)
    resources:
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        settings=lambda wildcards: cleaning_settings(wildcards.dataset),
        max_rejected_fraction=config["max_rejected_fraction"],
        seed=config["seed"],
    script:
        "../scripts/clean_structures.py"


rule augment_structures:
    input:
        cleaned="results/structures/{dataset}/cleaned.parquet",
    output:
        augmented="results/structures/{dataset}/augmented.parquet",
        rejected="results/structures/{dataset}/augmented.rejected.parquet",
        run="results/structures/{dataset}/augmented.run.json",
    log:
        "logs/augment_structures/{dataset}.log",
    conda:
        "../../envs/augmentation.yaml"
    threads: at_most(16)
    resources:
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=lambda wildcards, attempt: 240 * attempt,
    params:
        steps=config["augment"]["structures"],
        calculator=config["augment"]["calculator"],
        max_rejected_fraction=config["max_rejected_fraction"],
        seed=config["seed"],
    script:
        "../scripts/augment_structures.py"


rule split_structures:
    input:
        cleaned=f"results/structures/{{dataset}}/{CLEANED}.parquet",
    output:
        structures="results/structures/{dataset}/structures.parquet",
        run="results/structures/{dataset}/structures.run.json",
    log:
        "logs/split_structures/{dataset}.log",
    priority: 2  # trainings wait for it
    conda:
        "../../envs/structures.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        settings=config["split"],
        seed=config["seed"],
    script:
        "../scripts/split_structures.py"
