"""Collect what figures show of one test pattern."""

from pathlib import Path

from diffractory.evaluation.structure_2d_examples import collect_retrieval_examples
from stage import stage

with stage(snakemake.log[0]):
    collect_retrieval_examples(
        model=Path(snakemake.input.model),
        layers=Path(snakemake.input.layers),
        patterns=Path(snakemake.input.patterns),
        predictions=Path(snakemake.input.predictions),
        examples=Path(snakemake.output.examples),
        run=Path(snakemake.output.run),
        seed=snakemake.params.seed,
    )
