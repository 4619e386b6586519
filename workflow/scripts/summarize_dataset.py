"""Count the patterns of every material."""

from pathlib import Path

from diffractory.evaluation.predictions import summarize_dataset
from stage import stage

with stage(snakemake.log[0]):
    summarize_dataset(
        patterns=Path(snakemake.input.patterns),
        structures=Path(snakemake.input.structures),
        dataset=Path(snakemake.output.dataset),
        run=Path(snakemake.output.run),
        seed=snakemake.params.seed,
    )
