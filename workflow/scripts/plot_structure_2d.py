"""Make one figure of the two-dimensional study."""

from pathlib import Path

from diffractory.evaluation.structure_2d_figures import make_figure
from stage import stage

with stage(snakemake.log[0]):
    model = next(map(Path, snakemake.input.model), None)
    make_figure(
        name=snakemake.wildcards.n,
        predictions={Path(path).stem: Path(path) for path in snakemake.input.predictions},
        context=snakemake.params.context | {"seed": snakemake.params.seed},
        svg=Path(snakemake.output.svg),
        png=Path(snakemake.output.png),
        csv=Path(snakemake.output.csv),
        run=Path(snakemake.output.run),
        examples=next(map(Path, snakemake.input.examples), None),
        architecture=model and model / "architecture.json",
    )
