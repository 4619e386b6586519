"""Augment the structures of a data set."""

from pathlib import Path

from diffractory.augment.stage import augment_structures
from stage import stage

if __name__ == "__main__":  # worker processes import this file again
    with stage(snakemake.log[0]):
        augment_structures(
            cleaned=Path(snakemake.input.cleaned),
            augmented=Path(snakemake.output.augmented),
            rejected=Path(snakemake.output.rejected),
            run=Path(snakemake.output.run),
            steps=snakemake.params.steps,
            calculator=snakemake.params.calculator,
            max_rejected_fraction=snakemake.params.max_rejected_fraction,
            seed=snakemake.params.seed,
            threads=snakemake.threads,
        )
