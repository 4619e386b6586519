"""Write the way of one crystal out of noise, step by step."""

from pathlib import Path

from diffractory.training.sampling import trace_crystal
from stage import stage

with stage(snakemake.log[0]):
    trace_crystal(
        model=Path(snakemake.input.model),
        crystals=Path(snakemake.input.crystals),
        trajectory=Path(snakemake.output.trajectory),
        run=Path(snakemake.output.run),
        hardware=snakemake.params.hardware,
        seed=snakemake.params.seed,
    )
