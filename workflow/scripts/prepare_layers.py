"""Bring layers to the standard setting."""

from pathlib import Path

from diffractory.structures.layers import prepare_layers
from stage import stage

if __name__ == "__main__":  # worker processes import this file
    with stage(snakemake.log[0]):
        prepare_layers(
            cleaned=Path(snakemake.input.cleaned),
            layers=Path(snakemake.output.layers),
            rejected=Path(snakemake.output.rejected),
            run=Path(snakemake.output.run),
            settings=snakemake.params.settings,
            max_rejected_fraction=snakemake.params.max_rejected_fraction,
            seed=snakemake.params.seed,
            processes=snakemake.threads,
        )
