UED = config["ued"]
UED_HARDWARE = UED["hardware"]
UED_IMAGES = "results/patterns/mote2"
UED_PHASES = ["2h", "1t"]
UED_STORES = ["classes", "latent", "experiment"]
UED_MODELS = ["cnn_syn", "cnn_exp", "c_vae"]

# The predictions that each table and figure reads, and the models that it shows the inside of.
UED_TABLES = {
    "accuracy": ["cnn_syn"],
    "experiment": ["experiment/cnn_syn", "experiment/cnn_exp"],
    "steering": ["c_vae"],
}
UED_TABLES_SHOW = {"steering": "c_vae"}
UED_FIGURES = {
    "1": [],
    "2": [],
    "3": ["cnn_syn"],
    "4": ["experiment/cnn_syn", "experiment/cnn_exp"],
    "5": [],
    "6": ["c_vae"],
    "7": ["c_vae"],
}
UED_FIGURES_SHOW = {"1": "cnn_syn", "5": "c_vae", "6": "c_vae"}
UED_FIGURES_WITH_EXAMPLES = ["2", "4", "6"]


wildcard_constraints:
    phase="|".join(UED_PHASES),
    images="classes|latent",
    classifier="cnn_syn|cnn_exp",
    image_network="|".join(UED_MODELS),


rule calculate_phonons:
    output:
        phonons="results/structures/mote2/{phase}.yaml",
        run="results/structures/mote2/{phase}.run.json",
    log:
        "logs/calculate_phonons/{phase}.log",
    priority: 2  # trainings wait for it
    conda:
        "../../envs/augmentation.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        settings=UED["phases"],
        calculator=UED["calculator"],
        seed=config["seed"],
    script:
        "../scripts/calculate_phonons.py"


rule simulate_images:
    input:
        phonons=expand("results/structures/mote2/{phase}.yaml", phase=UED_PHASES),
    output:
        store=directory(f"{UED_IMAGES}/{{images}}.clean/{{shard}}-of-{{shards}}.zarr"),
        samples=f"{UED_IMAGES}/{{images}}.clean/{{shard}}-of-{{shards}}.samples.parquet",
        run=f"{UED_IMAGES}/{{images}}.clean/{{shard}}-of-{{shards}}.run.json",
    log:
        "logs/simulate_images/{images}.{shard}-of-{shards}.log",
    priority: 2  # trainings wait for it
    conda:
        "../../envs/augmentation.yaml"
    threads: at_most(16)
    resources:
        **gpu_resources(UED["images"]["device"]),
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=lambda wildcards, attempt: 120 * attempt,
    params:
        settings=lambda wildcards: image_settings(wildcards.images),
        seed=config["seed"],
    script:
        "../scripts/simulate_images.py"


rule detect_images:
    input:
        clean=lambda wildcards: clean_images(wildcards.images, ".zarr"),
        clean_samples=lambda wildcards: clean_images(
            wildcards.images, ".samples.parquet"
        ),
    output:
        store=directory(f"{UED_IMAGES}/{{images}}"),
        samples=f"{UED_IMAGES}/{{images}}.samples.parquet",
        run=f"{UED_IMAGES}/{{images}}.run.json",
    log:
        "logs/detect_images/{images}.log",
    priority: 2  # trainings wait for it
    conda:
        "../../envs/augmentation.yaml"
    threads: at_most(16)
    resources:
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=lambda wildcards, attempt: 120 * attempt,
    params:
        settings=UED["detector"],
        seed=config["seed"],
    script:
        "../scripts/detect_images.py"


if UED["experiment"]["source"] == "folder":

    rule read_experiment:
        input:
            folder=UED_SERIES,
        output:
            store=directory(f"{UED_IMAGES}/experiment"),
            samples=f"{UED_IMAGES}/experiment.samples.parquet",
            rejected=f"{UED_IMAGES}/experiment.rejected.parquet",
            run=f"{UED_IMAGES}/experiment.run.json",
        log:
            "logs/read_experiment.log",
        priority: 2  # trainings wait for it
        conda:
            "../../envs/augmentation.yaml"
        threads: 1
        resources:
            mem_mb=lambda wildcards, attempt: 4000 * attempt,
            runtime=lambda wildcards, attempt: 60 * attempt,
        params:
            settings=UED["experiment"]["geometry"],
            detector=detector_of_networks(),
            max_rejected_fraction=config["max_rejected_fraction"],
            seed=config["seed"],
        script:
            "../scripts/read_experiment.py"

else:

    rule simulate_experiment:
        input:
            phonons="results/structures/mote2/2h.yaml",
        output:
            store=directory(f"{UED_IMAGES}/experiment"),
            samples=f"{UED_IMAGES}/experiment.samples.parquet",
            run=f"{UED_IMAGES}/experiment.run.json",
        log:
            "logs/simulate_experiment.log",
        priority: 2  # trainings wait for it
        conda:
            "../../envs/augmentation.yaml"
        threads: at_most(16)
        resources:
            mem_mb=lambda wildcards, attempt: 8000 * attempt,
            runtime=lambda wildcards, attempt: 120 * attempt,
        params:
            settings=UED["experiment"]["stand_in"],
            detector=detector_of_networks(),
            seed=config["seed"],
        script:
            "../scripts/simulate_experiment.py"


rule train_image_network:
    input:
        images=lambda wildcards: learnt_images(wildcards.image_network, ""),
        samples=lambda wildcards: learnt_images(
            wildcards.image_network, ".samples.parquet"
        ),
        start=lambda wildcards: start_of(wildcards.image_network),
    output:
        model=directory("results/models/ued/{image_network}"),
    log:
        "logs/train_image_network/{image_network}.log",
    priority: 2  # the longest: what is left to the end leaves cores idle
    conda:
        "../../envs/training.yaml"
    threads: UED_HARDWARE["threads"] * UED_HARDWARE["devices"]
    resources:
        **training_resources(UED_HARDWARE),
        mem_mb=lambda wildcards, attempt: 16000 * attempt * UED_HARDWARE["devices"],
        runtime=lambda wildcards, attempt: 720 * attempt,
    params:
        name=lambda wildcards: (
            "c_vae" if wildcards.image_network == "c_vae" else "wide_resnet"
        ),
        classes=lambda wildcards: kinds_of(wildcards.image_network),
        settings=lambda wildcards: image_network_settings(wildcards.image_network),
        hardware=UED_HARDWARE,
        seed=config["seed"],
    script:
        "../scripts/train_image_network.py"


rule evaluate_image_network:
    input:
        model="results/models/ued/cnn_syn",
        images=f"{UED_IMAGES}/classes",
        samples=f"{UED_IMAGES}/classes.samples.parquet",
    output:
        predictions="results/evaluation/ued/cnn_syn.parquet",
        run="results/evaluation/ued/cnn_syn.run.json",
    log:
        "logs/evaluate_image_network.log",
    conda:
        "../../envs/training.yaml"
    threads: UED_HARDWARE["threads"]
    resources:
        **gpu_resources(UED_HARDWARE["device"]),
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=lambda wildcards, attempt: 60 * attempt,
    params:
        splits=["test"],
        hardware=UED_HARDWARE,
        seed=config["seed"],
    script:
        "../scripts/evaluate_image_network.py"


use rule evaluate_image_network as evaluate_experiment with:
    input:
        model="results/models/ued/{classifier}",
        images=f"{UED_IMAGES}/experiment",
        samples=f"{UED_IMAGES}/experiment.samples.parquet",
    output:
        predictions="results/evaluation/ued/experiment/{classifier}.parquet",
        run="results/evaluation/ued/experiment/{classifier}.run.json",
    log:
        "logs/evaluate_experiment/{classifier}.log",
    params:
        splits=["train", "validation", "test"],
        hardware=UED_HARDWARE,
        seed=config["seed"],


use rule evaluate_image_network as evaluate_c_vae with:
    input:
        model="results/models/ued/c_vae",
        images=f"{UED_IMAGES}/latent",
        samples=f"{UED_IMAGES}/latent.samples.parquet",
    output:
        predictions="results/evaluation/ued/c_vae.parquet",
        run="results/evaluation/ued/c_vae.run.json",
    log:
        "logs/evaluate_c_vae.log",


rule summarize_images:
    input:
        samples=expand(f"{UED_IMAGES}/{{store}}.samples.parquet", store=UED_STORES),
    output:
        dataset="results/evaluation/ued/dataset.parquet",
        run="results/evaluation/ued/dataset.run.json",
    log:
        "logs/summarize_images.log",
    conda:
        "../../envs/evaluation.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        seed=config["seed"],
    script:
        "../scripts/summarize_images.py"


rule collect_examples:
    input:
        stores=expand(f"{UED_IMAGES}/{{store}}", store=UED_STORES),
        samples=expand(f"{UED_IMAGES}/{{store}}.samples.parquet", store=UED_STORES),
    output:
        examples="results/evaluation/ued/examples.parquet",
        run="results/evaluation/ued/examples.run.json",
    log:
        "logs/collect_examples.log",
    conda:
        "../../envs/evaluation.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        seed=config["seed"],
    script:
        "../scripts/collect_examples.py"


rule tabulate_ued:
    input:
        dataset="results/evaluation/ued/dataset.parquet",
        predictions=lambda wildcards: predictions_of("ued", UED_TABLES[wildcards.n]),
        model=lambda wildcards: shown_image_networks(UED_TABLES_SHOW, wildcards.n),
    output:
        csv=in_report("results/tables/ued/table_{n}.csv"),
        markdown="results/tables/ued/table_{n}.md",
        run="results/tables/ued/table_{n}.run.json",
    log:
        "logs/tabulate_ued/table_{n}.log",
    conda:
        "../../envs/evaluation.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        context=ued_context(),
        seed=config["seed"],
    script:
        "../scripts/tabulate_ued.py"


rule plot_ued:
    input:
        predictions=lambda wildcards: predictions_of("ued", UED_FIGURES[wildcards.n]),
        examples=lambda wildcards: shown_examples(wildcards.n),
        model=lambda wildcards: shown_image_networks(UED_FIGURES_SHOW, wildcards.n),
    output:
        svg=in_report("results/figures/ued/figure_{n}.svg"),
        png="results/figures/ued/figure_{n}.png",
        csv="results/figures/ued/figure_{n}.csv",
        run="results/figures/ued/figure_{n}.run.json",
    log:
        "logs/plot_ued/figure_{n}.log",
    conda:
        "../../envs/evaluation.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        context=ued_context(),
        seed=config["seed"],
    script:
        "../scripts/plot_ued.py"
