"""Collect the images that figures show."""

from pathlib import Path

from diffractory.evaluation.ued_examples import collect_examples
from stage import stage

with stage(snakemake.log[0]):
    collect_examples(
        stores={Path(path).name: Path(path) for path in snakemake.input.stores},
        samples={Path(path).name.partition(".")[0]: Path(path) for path in snakemake.input.samples},
        examples=Path(snakemake.output.examples),
        run=Path(snakemake.output.run),
        seed=snakemake.params.seed,
    )
