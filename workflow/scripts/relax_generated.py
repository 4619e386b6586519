"""Relax generated crystals by a calculator."""

from pathlib import Path

from diffractory.evaluation.ground_state import relax_generated
from stage import stage

if __name__ == "__main__":  # worker processes import this file
    with stage(snakemake.log[0]):
        relax_generated(
            samples=Path(snakemake.input.samples),
            relaxed=Path(snakemake.output.relaxed),
            dft=Path(snakemake.output.dft),
            run=Path(snakemake.output.run),
            settings=snakemake.params.settings,
            calculator=snakemake.params.calculator,
            seed=snakemake.params.seed,
            threads=snakemake.threads,
        )
