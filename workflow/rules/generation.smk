CRYSTALS = config["generation"]
CRYSTAL_SETS = CRYSTALS["datasets"]
CRYSTALS_HARDWARE = CRYSTALS["hardware"] | {"workers": 0}
GROUND_STATE = CRYSTALS["ground_state"]
GENERATED = "results/generated"
JUDGED = "results/evaluation/generation"

GENERATORS = ["ftcp", *CRYSTALS["models"]]
DISJOINT = [f"{name}_disjoint" for name in CRYSTALS["disjoint"]]
TIME_REDUCED = list(CRYSTALS["sampling"]["steps"])

# Of which models each table and figure reads which evaluations.
GENERATION_TABLES = {
    "1": {"reconstructed": GENERATORS},
    "2": {"generated": GENERATORS, "reference": GENERATORS},
    "3": {"relaxed": GROUND_STATE["models"]},
    "S1": {"reconstructed": CRYSTALS["sampling"]["eq_6"]},
    "tolerances": {"reconstructed": GENERATORS},
    "steps": {"reconstructed": TIME_REDUCED},
    "splits": {
        kind: CRYSTALS["disjoint"] + DISJOINT
        for kind in ("reconstructed", "generated", "reference")
    },
}
GENERATION_FIGURES = {
    "1": {"models": ["dp_cdvae"]},
    "2": {},
    "S1": {"models": ["dp_cdvae", "dp_cdvae_na", "dp_cdvae_gine", "dp_cdvae_na_gine"]},
    "S2": {"relaxed": GROUND_STATE["models"]},
    "crystals": {"samples": GENERATORS, "generated": GENERATORS},
    "steps": {"reconstructed": TIME_REDUCED},
}


wildcard_constraints:
    generator=r"(ftcp|cdvae|dp_cdvae|ours)[a-z0-9_]*",


rule prepare_crystals:
    input:
        cleaned="results/structures/{dataset}/cleaned.parquet",
    output:
        crystals="results/structures/{dataset}/crystals.parquet",
        rejected="results/structures/{dataset}/crystals.rejected.parquet",
        run="results/structures/{dataset}/crystals.run.json",
    log:
        "logs/prepare_crystals/{dataset}.log",
    priority: 2  # trainings wait for it
    conda:
        "../../envs/structures.yaml"
    threads: at_most(8)
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        settings=CRYSTALS["crystals"],
        max_rejected_fraction=config["max_rejected_fraction"],
        seed=config["seed"],
    script:
        "../scripts/prepare_crystals.py"


rule train_generator:
    input:
        crystals="results/structures/{dataset}/crystals.parquet",
    output:
        model=directory("results/models/generation/{dataset}/{generator}"),
    log:
        "logs/train_generator/{dataset}/{generator}.log",
    priority: 1  # long; what is left to the end leaves cores idle
    conda:
        "../../envs/training.yaml"
    threads: CRYSTALS_HARDWARE["threads"]
    resources:
        **training_resources(CRYSTALS_HARDWARE),
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=lambda wildcards, attempt: 1440 * attempt,
    params:
        name=lambda wildcards: generator_kind(wildcards.generator),
        settings=lambda wildcards: generator_settings(wildcards.generator),
        split=lambda wildcards: split_of_generator(wildcards.generator),
        hardware=CRYSTALS_HARDWARE,
        seed=config["seed"],
    script:
        "../scripts/train_generator.py"


rule sample_crystals:
    input:
        model="results/models/generation/{dataset}/{generator}",
        crystals="results/structures/{dataset}/crystals.parquet",
    output:
        samples=f"{GENERATED}/{{dataset}}/{{generator}}.parquet",
        run=f"{GENERATED}/{{dataset}}/{{generator}}.run.json",
    log:
        "logs/sample_crystals/{dataset}/{generator}.log",
    conda:
        "../../envs/training.yaml"
    threads: CRYSTALS_HARDWARE["threads"]
    resources:
        **gpu_resources(CRYSTALS_HARDWARE["device"]),
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=lambda wildcards, attempt: 480 * attempt,
    params:
        settings=lambda wildcards: sampling_settings(wildcards.generator),
        hardware=CRYSTALS_HARDWARE,
        seed=config["seed"],
    script:
        "../scripts/sample_crystals.py"


rule trace_crystal:
    input:
        model=f"results/models/generation/{CRYSTAL_SETS[0]}/dp_cdvae",
        crystals=f"results/structures/{CRYSTAL_SETS[0]}/crystals.parquet",
    output:
        trajectory=f"{JUDGED}/trajectory.parquet",
        run=f"{JUDGED}/trajectory.run.json",
    log:
        "logs/trace_crystal.log",
    conda:
        "../../envs/training.yaml"
    threads: 1
    resources:
        **gpu_resources(CRYSTALS_HARDWARE["device"]),
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        hardware=CRYSTALS_HARDWARE,
        seed=config["seed"],
    script:
        "../scripts/trace_crystal.py"


rule fingerprint_crystals:
    input:
        crystals="results/structures/{dataset}/crystals.parquet",
    output:
        fingerprints=f"{JUDGED}/{{dataset}}/fingerprints.parquet",
        run=f"{JUDGED}/{{dataset}}/fingerprints.run.json",
    log:
        "logs/fingerprint_crystals/{dataset}.log",
    conda:
        "../../envs/generation.yaml"
    threads: CRYSTALS["evaluation"]["threads"]
    resources:
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=lambda wildcards, attempt: 120 * attempt,
    params:
        seed=config["seed"],
    script:
        "../scripts/fingerprint_crystals.py"


rule evaluate_reconstruction:
    input:
        samples=f"{GENERATED}/{{dataset}}/{{generator}}.parquet",
        crystals="results/structures/{dataset}/crystals.parquet",
    output:
        evaluation=f"{JUDGED}/{{dataset}}/{{generator}}.parquet",
        run=f"{JUDGED}/{{dataset}}/{{generator}}.run.json",
    log:
        "logs/evaluate_reconstruction/{dataset}/{generator}.log",
    conda:
        "../../envs/generation.yaml"
    threads: CRYSTALS["evaluation"]["threads"]
    resources:
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=lambda wildcards, attempt: 120 * attempt,
    params:
        settings=matching_settings(),
        seed=config["seed"],
    script:
        "../scripts/evaluate_reconstruction.py"


rule evaluate_generation:
    input:
        samples=f"{GENERATED}/{{dataset}}/{{generator}}.parquet",
        crystals="results/structures/{dataset}/crystals.parquet",
        fingerprints=f"{JUDGED}/{{dataset}}/fingerprints.parquet",
    output:
        generated=f"{JUDGED}/{{dataset}}/{{generator}}.generated.parquet",
        reference=f"{JUDGED}/{{dataset}}/{{generator}}.generated.reference.parquet",
        run=f"{JUDGED}/{{dataset}}/{{generator}}.generated.run.json",
    log:
        "logs/evaluate_generation/{dataset}/{generator}.log",
    conda:
        "../../envs/generation.yaml"
    threads: CRYSTALS["evaluation"]["threads"]
    resources:
        mem_mb=lambda wildcards, attempt: 16000 * attempt,
        runtime=lambda wildcards, attempt: 240 * attempt,
    params:
        settings=matching_settings()
        | {"properties": CRYSTALS["evaluation"]["properties"]},
        split=lambda wildcards: split_of_generator(wildcards.generator),
        seed=config["seed"],
    script:
        "../scripts/evaluate_generation.py"


rule relax_generated:
    input:
        samples=f"{GENERATED}/{{dataset}}/{{generator}}.parquet",
    output:
        relaxed=f"{JUDGED}/{{dataset}}/{{generator}}.relaxed.parquet",
        dft=directory(f"{JUDGED}/{{dataset}}/{{generator}}.relaxed.dft"),
        run=f"{JUDGED}/{{dataset}}/{{generator}}.relaxed.run.json",
    log:
        "logs/relax_generated/{dataset}/{generator}.log",
    conda:
        "../../envs/generation.yaml"
    threads: CRYSTALS["evaluation"]["threads"]
    resources:
        mem_mb=lambda wildcards, attempt: 16000 * attempt,
        runtime=lambda wildcards, attempt: 480 * attempt,
    params:
        settings=relaxation_settings() | matching_settings(),
        calculator=GROUND_STATE["calculator"],
        seed=config["seed"],
    script:
        "../scripts/relax_generated.py"


rule summarize_crystals:
    input:
        crystals="results/structures/{dataset}/crystals.parquet",
    output:
        dataset=f"{JUDGED}/{{dataset}}/dataset.parquet",
        run=f"{JUDGED}/{{dataset}}/dataset.run.json",
    log:
        "logs/summarize_crystals/{dataset}.log",
    conda:
        "../../envs/generation.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        seed=config["seed"],
    script:
        "../scripts/summarize_crystals.py"


rule tabulate_generation:
    input:
        unpack(lambda wildcards: judged(GENERATION_TABLES[wildcards.n])),
        datasets=expand(f"{JUDGED}/{{dataset}}/dataset.parquet", dataset=CRYSTAL_SETS),
    output:
        csv=in_report("results/tables/generation/table_{n}.csv"),
        markdown="results/tables/generation/table_{n}.md",
        run="results/tables/generation/table_{n}.run.json",
    log:
        "logs/tabulate_generation/table_{n}.log",
    conda:
        "../../envs/generation.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        context=lambda wildcards: generation_context(wildcards.n),
        seed=config["seed"],
    script:
        "../scripts/tabulate_generation.py"


rule plot_generation:
    input:
        unpack(lambda wildcards: judged(GENERATION_FIGURES[wildcards.n])),
        trace=lambda wildcards: (
            [f"{JUDGED}/trajectory.parquet"] if wildcards.n == "2" else []
        ),
    output:
        svg=in_report("results/figures/generation/figure_{n}.svg"),
        png="results/figures/generation/figure_{n}.png",
        csv="results/figures/generation/figure_{n}.csv",
        run="results/figures/generation/figure_{n}.run.json",
    log:
        "logs/plot_generation/figure_{n}.log",
    conda:
        "../../envs/generation.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        context=lambda wildcards: generation_context(wildcards.n),
        seed=config["seed"],
    script:
        "../scripts/plot_generation.py"
