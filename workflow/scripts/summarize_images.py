"""Count the images of the ultrafast-diffraction study."""

from pathlib import Path

from diffractory.evaluation.ued_examples import summarize_images
from stage import stage

with stage(snakemake.log[0]):
    summarize_images(
        samples={Path(path).name.partition(".")[0]: Path(path) for path in snakemake.input.samples},
        dataset=Path(snakemake.output.dataset),
        run=Path(snakemake.output.run),
        seed=snakemake.params.seed,
    )
