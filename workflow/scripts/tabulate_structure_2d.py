"""Make one table of the two-dimensional study."""

from pathlib import Path

from diffractory.evaluation.structure_2d_tables import make_table
from stage import stage

with stage(snakemake.log[0]):
    make_table(
        name=snakemake.wildcards.n,
        dataset=Path(snakemake.input.dataset),
        predictions={Path(path).stem: Path(path) for path in snakemake.input.predictions},
        context=snakemake.params.context | {"seed": snakemake.params.seed},
        csv=Path(snakemake.output.csv),
        markdown=Path(snakemake.output.markdown),
        run=Path(snakemake.output.run),
    )
