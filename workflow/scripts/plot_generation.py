"""Make one figure of the generation study."""

from pathlib import Path

from diffractory.evaluation.generation import files_by_model
from diffractory.evaluation.generation_figures import FIGURES, make_figure
from stage import stage

with stage(snakemake.log[0]):
    kinds, _ = FIGURES[snakemake.wildcards.n]
    files = {kind: files_by_model(map(Path, snakemake.input.get(kind, []))) for kind in kinds}
    make_figure(
        name=snakemake.wildcards.n,
        files=files,
        context=snakemake.params.context | {"seed": snakemake.params.seed},
        svg=Path(snakemake.output.svg),
        png=Path(snakemake.output.png),
        csv=Path(snakemake.output.csv),
        run=Path(snakemake.output.run),
        trace=next(map(Path, snakemake.input.get("trace", [])), None),
    )
