"""Judge generated crystals, beside the test crystals."""

from pathlib import Path

from diffractory.evaluation.generation_stages import evaluate_generation
from stage import stage

if __name__ == "__main__":  # worker processes import this file
    with stage(snakemake.log[0]):
        evaluate_generation(
            samples=Path(snakemake.input.samples),
            crystals=Path(snakemake.input.crystals),
            fingerprints_of_test=Path(snakemake.input.fingerprints),
            generated=Path(snakemake.output.generated),
            reference=Path(snakemake.output.reference),
            run=Path(snakemake.output.run),
            settings=snakemake.params.settings,
            split=snakemake.params.split,
            seed=snakemake.params.seed,
            threads=snakemake.threads,
        )
