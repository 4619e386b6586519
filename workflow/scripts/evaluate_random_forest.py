"""Predict the test patterns with the hierarchical random forest."""

from pathlib import Path

from snakemake.script import snakemake
from stage import stage

from diffractory.evaluation.predictions import evaluate_random_forest

with stage(snakemake.log[0]):
    evaluate_random_forest(
        model=Path(snakemake.input.model),
        patterns=Path(snakemake.input.patterns),
        structures=Path(snakemake.input.structures),
        predictions=Path(snakemake.output.predictions),
        run=Path(snakemake.output.run),
        seed=snakemake.params.seed,
    )
