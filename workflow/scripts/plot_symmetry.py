"""Make one figure of the symmetry study."""

from pathlib import Path

from diffractory.evaluation.symmetry_figures import make_figure
from stage import stage

with stage(snakemake.log[0]):
    make_figure(
        name=snakemake.wildcards.n,
        dataset=Path(snakemake.input.dataset),
        predictions={Path(path).stem: Path(path) for path in snakemake.input.predictions},
        context=snakemake.params.context | {"seed": snakemake.params.seed},
        svg=Path(snakemake.output.svg),
        png=Path(snakemake.output.png),
        csv=Path(snakemake.output.csv),
        run=Path(snakemake.output.run),
        architecture=next(
            (Path(model, "architecture.json") for model in snakemake.input.model), None
        ),
        conditions=next(map(Path, snakemake.input.conditions), None),
    )
