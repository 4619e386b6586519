"""Let a trained network reconstruct test crystals and generate new ones."""

from pathlib import Path

from diffractory.training.sampling import sample_crystals
from stage import stage

with stage(snakemake.log[0]):
    sample_crystals(
        model=Path(snakemake.input.model),
        crystals=Path(snakemake.input.crystals),
        samples=Path(snakemake.output.samples),
        run=Path(snakemake.output.run),
        settings=snakemake.params.settings,
        hardware=snakemake.params.hardware,
        seed=snakemake.params.seed,
    )
