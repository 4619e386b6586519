"""Let a detector see the clean images of a set."""

from pathlib import Path

from diffractory.augment.detection import detect_images
from stage import stage

if __name__ == "__main__":  # worker processes import this file again
    with stage(snakemake.log[0]):
        detect_images(
            clean=[Path(path) for path in snakemake.input.clean],
            clean_samples=[Path(path) for path in snakemake.input.clean_samples],
            store=Path(snakemake.output.store),
            samples=Path(snakemake.output.samples),
            run=Path(snakemake.output.run),
            settings=snakemake.params.settings,
            seed=snakemake.params.seed,
            threads=snakemake.threads,
        )
