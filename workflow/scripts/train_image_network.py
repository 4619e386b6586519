"""Train one network of images."""

import os
from pathlib import Path

from diffractory.training.image_training import train_image_network
from stage import stage

if __name__ == "__main__":  # processes that load data import this file
    with stage(snakemake.log[0]):
        train_image_network(
            name=snakemake.params.name,
            images=Path(snakemake.input.images),
            samples=Path(snakemake.input.samples),
            model=Path(snakemake.output.model),
            classes=snakemake.params.classes,
            settings=snakemake.params.settings,
            hardware=snakemake.params.hardware,
            seed=snakemake.params.seed,
            minutes=snakemake.resources.runtime if "SLURM_JOB_ID" in os.environ else None,
            start=next(map(Path, snakemake.input.start), None),
        )
