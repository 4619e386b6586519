rule report:
    input:
        tables=expand("results/tables/symmetry/table_{n}.csv", n=SYMMETRY_TABLES)
        + expand("results/tables/ued/table_{n}.csv", n=UED_TABLES)
        + expand("results/tables/structure_2d/table_{n}.csv", n=STRUCTURE_2D_TABLES)
        + expand("results/tables/generation/table_{n}.csv", n=GENERATION_TABLES),
        figures=expand("results/figures/symmetry/figure_{n}.svg", n=SYMMETRY_FIGURES)
        + expand("results/figures/ued/figure_{n}.svg", n=UED_FIGURES)
        + expand("results/figures/structure_2d/figure_{n}.svg", n=STRUCTURE_2D_FIGURES)
        + expand("results/figures/generation/figure_{n}.svg", n=GENERATION_FIGURES),
        records=[
            f"results/structures/{DATASET}/retrieved.run.json",
            *dict.fromkeys(
                f"results/structures/{DATASET}/{name}.run.json"
                for name in ("cleaned", CLEANED)
            ),
            f"results/structures/{DATASET}/structures.run.json",
            f"{SIMULATED}.simulation.run.json",
            *dict.fromkeys([f"{SIMULATED}.run.json", f"{PATTERNS}.run.json"]),
            f"{SIMULATED}.perturbed.run.json",
            "results/evaluation/symmetry/dataset.run.json",
            *(["results/scans/gold.run.json"] if SCAN["source"] == "gold" else []),
            *expand("results/structures/mote2/{phase}.run.json", phase=UED_PHASES),
            *clean_images("classes", ".run.json"),
            *clean_images("latent", ".run.json"),
            *expand(f"{UED_IMAGES}/{{store}}.run.json", store=UED_STORES),
            "results/evaluation/ued/dataset.run.json",
            *expand(
                f"{LAYERS_FOLDER}/{{name}}.run.json",
                name=[
                    "retrieved",
                    "cleaned",
                    "layers",
                    "relaxed",
                    "perturbed",
                    "distractors",
                ],
            ),
            *expand(
                f"{LAYERS_PATTERNS}/{{motion}}.run.json",
                motion=["unperturbed", "perturbed"],
            ),
            "results/evaluation/structure_2d/dataset.run.json",
            *expand(
                "results/structures/{dataset}/{name}.run.json",
                dataset=CRYSTAL_SETS,
                name=["retrieved", "cleaned", "crystals"],
            ),
            *expand(
                f"{JUDGED}/{{dataset}}/{{name}}.run.json",
                dataset=CRYSTAL_SETS,
                name=["dataset", "fingerprints"],
            ),
        ],
        models=expand("results/models/symmetry/{model}", model=SYMMETRY_TRAINED)
        + expand("results/maps/{model}", model=SCAN["models"])
        + expand("results/models/ued/{model}", model=UED_MODELS)
        + expand("results/models/structure_2d/{model}", model=RETRIEVAL_TRAINED)
        + expand(
            "results/models/generation/{dataset}/{model}",
            dataset=CRYSTAL_SETS,
            model=GENERATORS + DISJOINT,
        ),
        evaluations=expand(
            "results/evaluation/symmetry/{model}.run.json", model=SYMMETRY_TRAINED
        )
        + expand(
            "results/evaluation/symmetry/perturbed/{model}.run.json",
            model=SYMMETRY_MODELS,
        )
        + expand(
            "results/evaluation/ued/{model}.run.json",
            model=[
                "cnn_syn",
                "experiment/cnn_syn",
                "experiment/cnn_exp",
                "c_vae",
            ],
        )
        + expand(
            "results/evaluation/structure_2d/{model}.run.json", model=RETRIEVAL_TRAINED
        )
        + expand(
            f"{JUDGED}/{{dataset}}/{{model}}{{kind}}.run.json",
            dataset=CRYSTAL_SETS,
            model=GENERATORS + DISJOINT,
            kind=["", ".generated"],
        )
        + expand(
            f"{GENERATED}/{{dataset}}/{{model}}.run.json",
            dataset=CRYSTAL_SETS,
            model=GENERATORS + DISJOINT,
        )
        + expand(
            f"{JUDGED}/{GROUND_STATE['dataset']}/{{model}}.relaxed.run.json",
            model=GROUND_STATE["models"],
        ),
    output:
        report=report(
            "results/report.html",
            category="The whole run",
            labels={"what": "report"},
            caption="../report/report.rst",
        ),
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
        options=same_configuration(),
        seed=config["seed"],
    script:
        "../scripts/report.py"
