"""Train one network that generates crystals."""

import os
from pathlib import Path

from diffractory.training.generation_training import train_generator
from stage import stage

if __name__ == "__main__":  # processes that load data import this file
    with stage(snakemake.log[0]):
        train_generator(
            name=snakemake.params.name,
            crystals=Path(snakemake.input.crystals),
            split=snakemake.params.split,
            model=Path(snakemake.output.model),
            settings=snakemake.params.settings,
            hardware=snakemake.params.hardware,
            seed=snakemake.params.seed,
            minutes=snakemake.resources.runtime if "SLURM_JOB_ID" in os.environ else None,
        )
