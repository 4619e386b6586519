"""Make one table of the generation study."""

from pathlib import Path

from diffractory.evaluation.generation import files_by_model
from diffractory.evaluation.generation_tables import TABLES, make_table
from stage import stage

with stage(snakemake.log[0]):
    make_table(
        name=snakemake.wildcards.n,
        datasets={Path(path).parent.name: Path(path) for path in snakemake.input.datasets},
        files={
            kind: files_by_model([Path(path) for path in snakemake.input.get(kind, [])])
            for kind in TABLES[snakemake.wildcards.n]
        },
        context=snakemake.params.context | {"seed": snakemake.params.seed},
        csv=Path(snakemake.output.csv),
        markdown=Path(snakemake.output.markdown),
        run=Path(snakemake.output.run),
    )
