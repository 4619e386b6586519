"""Compare reconstructed crystals with what they were encoded from."""

from pathlib import Path

from diffractory.evaluation.generation_stages import evaluate_reconstruction
from stage import stage

if __name__ == "__main__":  # worker processes import this file
    with stage(snakemake.log[0]):
        evaluate_reconstruction(
            samples=Path(snakemake.input.samples),
            crystals=Path(snakemake.input.crystals),
            evaluation=Path(snakemake.output.evaluation),
            run=Path(snakemake.output.run),
            settings=snakemake.params.settings,
            seed=snakemake.params.seed,
            threads=snakemake.threads,
        )
