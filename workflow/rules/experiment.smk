if SCAN["source"] == "gold":

    rule simulate_scan:
        output:
            scan=directory("results/scans/gold.zarr"),
            truth="results/scans/gold.truth.parquet",
            run="results/scans/gold.run.json",
        log:
            "logs/simulate_scan.log",
        priority: 2  # while all cores are free, see train_random_forest
        conda:
            "../../envs/experiment.yaml"
        threads: at_most(16)
        resources:
            mem_mb=lambda wildcards, attempt: 8000 * attempt,
            runtime=lambda wildcards, attempt: 120 * attempt,
        params:
            settings=SCAN["gold"],
            seed=config["seed"],
        script:
            "../scripts/simulate_scan.py"


rule map_scan:
    input:
        scan=SCAN_FILE,
        model="results/models/symmetry/{mapper}",
    output:
        map=directory("results/maps/{mapper}"),
    log:
        "logs/map_scan/{mapper}.log",
    wildcard_constraints:
        mapper="|".join(SYMMETRY_MODELS),
    conda:
        "../../envs/experiment.yaml"
    threads: HARDWARE["threads"]
    resources:
        **gpu_resources(HARDWARE["device"]),
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=lambda wildcards, attempt: 240 * attempt,
    params:
        pixel_size=SCAN["pixel_size"],
        energy=SCAN["energy"],
        settings={
            key: SCAN[key]
            for key in ("min_spots", "median_filter", "min_confidence", "pool")
        },
        device=HARDWARE["device"],
        threads=HARDWARE["threads"],
    script:
        "../scripts/map_scan.py"
