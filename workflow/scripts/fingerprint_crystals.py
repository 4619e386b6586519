"""Take the fingerprints and properties of the test crystals, once for all models."""

from pathlib import Path

from diffractory.evaluation.generation_stages import fingerprint_crystals
from stage import stage

if __name__ == "__main__":  # worker processes import this file
    with stage(snakemake.log[0]):
        fingerprint_crystals(
            crystals=Path(snakemake.input.crystals),
            fingerprints_of_test=Path(snakemake.output.fingerprints),
            run=Path(snakemake.output.run),
            seed=snakemake.params.seed,
            threads=snakemake.threads,
        )
