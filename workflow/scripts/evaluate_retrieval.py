"""Ask a network which crystals made the test patterns."""

from pathlib import Path

from diffractory.evaluation.retrieval import evaluate_retrieval
from stage import stage

with stage(snakemake.log[0]):
    evaluate_retrieval(
        model=Path(snakemake.input.model),
        layers=Path(snakemake.input.layers),
        patterns=Path(snakemake.input.patterns),
        distractors=Path(snakemake.input.distractors),
        predictions=Path(snakemake.output.predictions),
        run=Path(snakemake.output.run),
        settings=snakemake.params.settings,
        simulation=snakemake.params.simulation,
        hardware=snakemake.params.hardware,
        seed=snakemake.params.seed,
    )
