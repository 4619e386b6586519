"""Train one network of layers and patterns."""

import os
from pathlib import Path

from diffractory.training.retrieval_training import train_retrieval_network
from stage import stage

with stage(snakemake.log[0]):
    train_retrieval_network(
        name=snakemake.params.name,
        patterns=Path(snakemake.input.patterns),
        layers=Path(snakemake.input.layers),
        model=Path(snakemake.output.model),
        settings=snakemake.params.settings,
        hardware=snakemake.params.hardware,
        seed=snakemake.params.seed,
        minutes=snakemake.resources.runtime if "SLURM_JOB_ID" in os.environ else None,
    )
