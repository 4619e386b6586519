"""Simulate the patterns of layers."""

from pathlib import Path

from diffractory.simulate.layers import simulate_layers
from stage import stage

with stage(snakemake.log[0]):
    simulate_layers(
        layers=Path(snakemake.input.layers),
        store=Path(snakemake.output.store),
        rejected=Path(snakemake.output.rejected),
        run=Path(snakemake.output.run),
        settings=snakemake.params.settings,
        seed=snakemake.params.seed,
    )
