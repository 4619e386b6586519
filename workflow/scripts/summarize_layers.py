"""Count the layers by split and family."""

from pathlib import Path

from diffractory.evaluation.structure_2d_examples import summarize_layers
from stage import stage

with stage(snakemake.log[0]):
    summarize_layers(
        layers=Path(snakemake.input.layers),
        dataset=Path(snakemake.output.dataset),
        run=Path(snakemake.output.run),
        seed=snakemake.params.seed,
    )
