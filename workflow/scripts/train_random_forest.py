"""Train the hierarchical random forest."""

from pathlib import Path

from diffractory.training.random_forest import train_random_forest
from stage import stage

with stage(snakemake.log[0]):
    train_random_forest(
        patterns=Path(snakemake.input.patterns),
        structures=Path(snakemake.input.structures),
        model=Path(snakemake.output.model),
        settings=snakemake.params.settings,
        g_max=snakemake.params.g_max,
        seed=snakemake.params.seed,
        threads=snakemake.threads,
    )
