"""Simulate one shard of the clean images of a set."""

from pathlib import Path

from diffractory.augment.samples import simulate_images
from stage import stage

if __name__ == "__main__":  # worker processes import this file again
    with stage(snakemake.log[0]):
        simulate_images(
            phonons={Path(path).stem: Path(path) for path in snakemake.input.phonons},
            store=Path(snakemake.output.store),
            samples=Path(snakemake.output.samples),
            run=Path(snakemake.output.run),
            shard=int(snakemake.wildcards.shard),
            shards=int(snakemake.wildcards.shards),
            settings=snakemake.params.settings,
            seed=snakemake.params.seed,
            threads=snakemake.threads,
        )
