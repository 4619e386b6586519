"""Parse, check and label the structures of one data set."""

from pathlib import Path

from diffractory.structures.cleaning import clean_structures
from stage import stage

if __name__ == "__main__":  # worker processes import this file again
    with stage(snakemake.log[0]):
        clean_structures(
            retrieved=Path(snakemake.input.retrieved),
            cleaned=Path(snakemake.output.cleaned),
            rejected=Path(snakemake.output.rejected),
            run=Path(snakemake.output.run),
            settings=snakemake.params.settings,
            max_rejected_fraction=snakemake.params.max_rejected_fraction,
            seed=snakemake.params.seed,
            processes=snakemake.threads,
        )
