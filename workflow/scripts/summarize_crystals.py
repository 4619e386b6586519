"""Count the crystals of a data set by split."""

from pathlib import Path

from diffractory.evaluation.generation_stages import summarize_crystals
from stage import stage

with stage(snakemake.log[0]):
    summarize_crystals(
        crystals=Path(snakemake.input.crystals),
        dataset=Path(snakemake.output.dataset),
        run=Path(snakemake.output.run),
        seed=snakemake.params.seed,
    )
