rule simulate_patterns:
    input:
        structures=f"results/structures/{{dataset}}/{CLEANED}.parquet",
    output:
        store=temp(
            directory(
                "results/patterns/{dataset}/{engine}.shards/{shard}-of-{shards}.zarr"
            )
        ),
        rejected=temp(
            "results/patterns/{dataset}/{engine}.shards/{shard}-of-{shards}.rejected.parquet"
        ),
        run=temp(
            "results/patterns/{dataset}/{engine}.shards/{shard}-of-{shards}.run.json"
        ),
    log:
        "logs/simulate_patterns/{dataset}.{engine}.{shard}-of-{shards}.log",
    priority: 2  # trainings wait for it
    conda:
        "../../envs/simulation.yaml"
    threads: at_most(4)
    resources:
        **gpu_resources(config["simulate"]["device"]),
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        settings=simulation_settings(),
        seed=config["seed"],
    script:
        "../scripts/simulate_patterns.py"


rule collect_patterns:
    input:
        stores=lambda wildcards: shards_of(wildcards, ".zarr"),
        rejected=lambda wildcards: shards_of(wildcards, ".rejected.parquet"),
        runs=lambda wildcards: shards_of(wildcards, ".run.json"),
    output:
        store=directory("results/patterns/{dataset}/{engine}"),
        rejected="results/patterns/{dataset}/{engine}.rejected.parquet",
        simulation="results/patterns/{dataset}/{engine}.simulation.run.json",
        run="results/patterns/{dataset}/{engine}.run.json",
    log:
        "logs/collect_patterns/{dataset}.{engine}.log",
    priority: 2  # trainings wait for it
    conda:
        "../../envs/simulation.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        settings=simulation_settings(),
        max_rejected_fraction=config["max_rejected_fraction"],
        seed=config["seed"],
    script:
        "../scripts/collect_patterns.py"


rule augment_patterns:
    input:
        patterns="results/patterns/{dataset}/{engine}",
    output:
        augmented=directory("results/patterns/{dataset}/{engine}.augmented"),
        draws="results/patterns/{dataset}/{engine}.augmented.parquet",
        run="results/patterns/{dataset}/{engine}.augmented.run.json",
    log:
        "logs/augment_patterns/{dataset}.{engine}.log",
    priority: 2  # trainings wait for it
    conda:
        "../../envs/augmentation.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        steps=config["augment"]["patterns"],
        seed=config["seed"],
    script:
        "../scripts/augment_patterns.py"
