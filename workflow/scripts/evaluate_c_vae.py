"""Write where the C-VAE puts images in its latent space."""

from pathlib import Path

from diffractory.evaluation.image_predictions import evaluate_c_vae
from stage import stage

with stage(snakemake.log[0]):
    evaluate_c_vae(
        model=Path(snakemake.input.model),
        images=Path(snakemake.input.images),
        samples=Path(snakemake.input.samples),
        predictions=Path(snakemake.output.predictions),
        run=Path(snakemake.output.run),
        splits=snakemake.params.splits,
        hardware=snakemake.params.hardware,
        seed=snakemake.params.seed,
    )
