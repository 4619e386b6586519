"""Simulate a series of diffraction images in place of an experiment."""

from pathlib import Path

from diffractory.experiment.stage import simulate_experiment
from stage import stage

if __name__ == "__main__":  # worker processes import this file again
    with stage(snakemake.log[0]):
        simulate_experiment(
            phonons=Path(snakemake.input.phonons),
            store=Path(snakemake.output.store),
            samples=Path(snakemake.output.samples),
            run=Path(snakemake.output.run),
            settings=snakemake.params.settings,
            detector=snakemake.params.detector,
            seed=snakemake.params.seed,
            threads=snakemake.threads,
        )
