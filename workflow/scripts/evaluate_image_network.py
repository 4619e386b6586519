"""Write what a network says of images."""

from pathlib import Path

from diffractory.evaluation.image_predictions import evaluate_image_network
from stage import stage

with stage(snakemake.log[0]):
    evaluate_image_network(
        model=Path(snakemake.input.model),
        images=Path(snakemake.input.images),
        samples=Path(snakemake.input.samples),
        predictions=Path(snakemake.output.predictions),
        run=Path(snakemake.output.run),
        splits=snakemake.params.splits,
        hardware=snakemake.params.hardware,
        seed=snakemake.params.seed,
    )
