"""Relax layers by a calculator."""

from pathlib import Path

from diffractory.augment.layers import relax_layers
from stage import stage

if __name__ == "__main__":  # worker processes import this file
    with stage(snakemake.log[0]):
        relax_layers(
            layers=Path(snakemake.input.layers),
            relaxed=Path(snakemake.output.relaxed),
            rejected=Path(snakemake.output.rejected),
            run=Path(snakemake.output.run),
            settings=snakemake.params.settings,
            calculator=snakemake.params.calculator,
            seed=snakemake.params.seed,
            threads=snakemake.threads,
        )
