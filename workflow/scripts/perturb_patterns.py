"""Spoil test patterns the way a microscope does."""

from pathlib import Path

from diffractory.augment.perturb import perturb_patterns
from stage import stage

if __name__ == "__main__":  # worker processes import this file again
    with stage(snakemake.log[0]):
        perturb_patterns(
            patterns=Path(snakemake.input.patterns),
            structures=Path(snakemake.input.structures),
            store=Path(snakemake.output.store),
            conditions=Path(snakemake.output.conditions),
            run=Path(snakemake.output.run),
            settings=snakemake.params.settings,
            simulate=snakemake.params.simulate,
            seed=snakemake.params.seed,
            threads=snakemake.threads,
        )
