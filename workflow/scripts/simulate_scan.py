"""Simulate a scan of gold nanoparticles in place of an experiment."""

from pathlib import Path

from diffractory.experiment.gold_scan import simulate_scan
from stage import stage

if __name__ == "__main__":  # worker processes import this file again
    with stage(snakemake.log[0]):
        simulate_scan(
            scan=Path(snakemake.output.scan),
            truth=Path(snakemake.output.truth),
            run=Path(snakemake.output.run),
            settings=snakemake.params.settings,
            seed=snakemake.params.seed,
            threads=snakemake.threads,
        )
