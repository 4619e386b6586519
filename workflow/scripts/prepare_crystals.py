"""Reduce the cells of crystals and divide them into sets."""

from pathlib import Path

from diffractory.structures.crystals import prepare_crystals
from stage import stage

if __name__ == "__main__":  # worker processes import this file
    with stage(snakemake.log[0]):
        prepare_crystals(
            cleaned=Path(snakemake.input.cleaned),
            crystals=Path(snakemake.output.crystals),
            rejected=Path(snakemake.output.rejected),
            run=Path(snakemake.output.run),
            settings=snakemake.params.settings,
            max_rejected_fraction=snakemake.params.max_rejected_fraction,
            seed=snakemake.params.seed,
            processes=snakemake.threads,
        )
