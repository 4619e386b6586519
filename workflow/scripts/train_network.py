"""Train one network of spot lists."""

import os
from pathlib import Path

from diffractory.training.spot_training import train_network
from stage import stage

if __name__ == "__main__":  # processes that load data import this file
    with stage(snakemake.log[0]):
        train_network(
            name=snakemake.params.name,
            patterns=Path(snakemake.input.patterns),
            structures=Path(snakemake.input.structures),
            model=Path(snakemake.output.model),
            settings=snakemake.params.settings,
            max_spots=snakemake.params.max_spots,
            hardware=snakemake.params.hardware,
            seed=snakemake.params.seed,
            minutes=snakemake.resources.runtime if "SLURM_JOB_ID" in os.environ else None,
        )
