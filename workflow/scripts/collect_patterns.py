"""Join the shards of a pattern store."""

from pathlib import Path

from diffractory.simulate.stage import collect_patterns
from stage import stage

with stage(snakemake.log[0]):
    collect_patterns(
        stores=[Path(path) for path in snakemake.input.stores],
        rejected=[Path(path) for path in snakemake.input.rejected],
        runs=[Path(path) for path in snakemake.input.runs],
        store=Path(snakemake.output.store),
        all_rejected=Path(snakemake.output.rejected),
        simulation=Path(snakemake.output.simulation),
        run=Path(snakemake.output.run),
        settings=snakemake.params.settings,
        max_rejected_fraction=snakemake.params.max_rejected_fraction,
        seed=snakemake.params.seed,
    )
