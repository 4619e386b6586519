rule report:
    input:
        tables=expand("results/tables/symmetry/table_{n}.csv", n=SYMMETRY_TABLES),
        figures=expand("results/figures/symmetry/figure_{n}.svg", n=SYMMETRY_FIGURES),
        records=[
            f"results/structures/{DATASET}/retrieved.run.json",
            f"results/structures/{DATASET}/cleaned.run.json",
            f"results/structures/{DATASET}/structures.run.json",
            f"{PATTERNS}.simulation.run.json",
            f"{PATTERNS}.run.json",
            f"{PATTERNS}.perturbed.run.json",
            "results/evaluation/symmetry/dataset.run.json",
        ],
        models=expand("results/models/symmetry/{model}", model=SYMMETRY_TRAINED),
        evaluations=expand(
            "results/evaluation/symmetry/{model}.run.json", model=SYMMETRY_TRAINED
        )
        + expand(
            "results/evaluation/symmetry/perturbed/{model}.run.json",
            model=SYMMETRY_MODELS,
        ),
    output:
        report="results/report.html",
        run="results/report.run.json",
    log:
        "logs/report.log",
    conda:
        "../../envs/evaluation.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        seed=config["seed"],
    script:
        "../scripts/report.py"
