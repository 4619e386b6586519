"""Make snapshots of the thermal motion of layers."""

from pathlib import Path

from diffractory.augment.layers import perturb_layers
from stage import stage

if __name__ == "__main__":  # worker processes import this file
    with stage(snakemake.log[0]):
        perturb_layers(
            layers=Path(snakemake.input.layers),
            perturbed=Path(snakemake.output.perturbed),
            rejected=Path(snakemake.output.rejected),
            run=Path(snakemake.output.run),
            settings=snakemake.params.settings,
            calculator=snakemake.params.calculator,
            seed=snakemake.params.seed,
            threads=snakemake.threads,
        )
