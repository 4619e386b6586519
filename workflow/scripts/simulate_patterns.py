"""Simulate the patterns of one block of structures."""

from pathlib import Path

from diffractory.simulate.stage import simulate_patterns
from stage import stage

if __name__ == "__main__":  # worker processes import this file again
    with stage(snakemake.log[0]):
        simulate_patterns(
            structures=Path(snakemake.input.structures),
            store=Path(snakemake.output.store),
            rejected=Path(snakemake.output.rejected),
            run=Path(snakemake.output.run),
            shard=int(snakemake.wildcards.shard),
            shards=int(snakemake.wildcards.shards),
            settings=snakemake.params.settings,
            seed=snakemake.params.seed,
            threads=snakemake.threads,
        )
