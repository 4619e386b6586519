"""Predict the test patterns with a network of spot lists."""

from pathlib import Path

from diffractory.evaluation.predictions import evaluate_network
from stage import stage

with stage(snakemake.log[0]):
    evaluate_network(
        model=Path(snakemake.input.model),
        patterns=Path(snakemake.input.patterns),
        structures=Path(snakemake.input.structures),
        predictions=Path(snakemake.output.predictions),
        run=Path(snakemake.output.run),
        hardware=snakemake.params.hardware,
        seed=snakemake.params.seed,
    )
