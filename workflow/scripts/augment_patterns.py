"""Augment the patterns of a data set."""

from pathlib import Path

from diffractory.augment.stage import augment_patterns
from stage import stage

with stage(snakemake.log[0]):
    augment_patterns(
        patterns=Path(snakemake.input.patterns),
        augmented=Path(snakemake.output.augmented),
        draws=Path(snakemake.output.draws),
        run=Path(snakemake.output.run),
        steps=snakemake.params.steps,
        seed=snakemake.params.seed,
    )
