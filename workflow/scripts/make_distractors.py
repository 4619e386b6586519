"""Make crystals that are nearly those of the test."""

from pathlib import Path

from diffractory.augment.layers import make_distractors
from stage import stage

with stage(snakemake.log[0]):
    make_distractors(
        layers=Path(snakemake.input.layers),
        distractors=Path(snakemake.output.distractors),
        run=Path(snakemake.output.run),
        settings=snakemake.params.settings,
        seed=snakemake.params.seed,
    )
