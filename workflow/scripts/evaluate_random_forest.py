"""Predict the test patterns with the hierarchical random forest."""

from pathlib import Path

from diffractory.evaluation.predictions import evaluate_random_forest
from stage import stage

with stage(snakemake.log[0]):
    evaluate_random_forest(
        model=Path(snakemake.input.model),
        patterns=Path(snakemake.input.patterns),
        structures=Path(snakemake.input.structures),
        predictions=Path(snakemake.output.predictions),
        run=Path(snakemake.output.run),
        seed=snakemake.params.seed,
    )
