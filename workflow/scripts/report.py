"""Gather all tables and figures in one page."""

from pathlib import Path

from diffractory.evaluation.report import make_report
from stage import stage

with stage(snakemake.log[0]):
    make_report(
        output=Path(snakemake.output.report),
        tables=[Path(path) for path in snakemake.input.tables],
        figures=[Path(path) for path in snakemake.input.figures],
        records=[
            *(Path(path) for path in snakemake.input.records),
            *(Path(path, "run.json") for path in snakemake.input.models),
            *(Path(path) for path in snakemake.input.evaluations),
        ],
        command=" ".join(["snakemake --cores all {file}", *snakemake.params.options]),
        run=Path(snakemake.output.run),
        seed=snakemake.params.seed,
    )
