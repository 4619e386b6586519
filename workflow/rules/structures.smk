rule retrieve_structures:
    input:
        files=lambda wildcards: source_files(wildcards.dataset),
    output:
        retrieved="results/structures/{dataset}/retrieved.parquet",
        run="results/structures/{dataset}/retrieved.run.json",
    log:
        "logs/retrieve_structures/{dataset}.log",
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
        structures="results/structures/{dataset}/structures.parquet",
        rejected="results/structures/{dataset}/rejected.parquet",
        run="results/structures/{dataset}/run.json",
    log:
        "logs/clean_structures/{dataset}.log",
    conda:
        "../../envs/structures.yaml"
    threads: 8
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        settings=config["structures"],
        split=config["split"],
        max_rejected_fraction=config["max_rejected_fraction"],
        seed=config["seed"],
    script:
        "../scripts/clean_structures.py"
