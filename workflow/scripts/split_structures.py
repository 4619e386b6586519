"""Divide the structures of one data set into training, validation and test."""

from pathlib import Path

from diffractory.structures.splits import split_structures
from stage import stage

with stage(snakemake.log[0]):
    split_structures(
        cleaned=Path(snakemake.input.cleaned),
        structures=Path(snakemake.output.structures),
        run=Path(snakemake.output.run),
        settings=snakemake.params.settings,
        seed=snakemake.params.seed,
    )
