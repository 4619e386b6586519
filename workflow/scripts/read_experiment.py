"""Read a user's series of diffraction images."""

from pathlib import Path

from diffractory.experiment.stage import read_experiment
from stage import stage

with stage(snakemake.log[0]):
    read_experiment(
        folder=Path(snakemake.input.folder),
        store=Path(snakemake.output.store),
        samples=Path(snakemake.output.samples),
        rejected=Path(snakemake.output.rejected),
        run=Path(snakemake.output.run),
        settings=snakemake.params.settings,
        detector=snakemake.params.detector,
        max_rejected_fraction=snakemake.params.max_rejected_fraction,
        seed=snakemake.params.seed,
    )
