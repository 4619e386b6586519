"""Relax one phase and calculate its force constants."""

from pathlib import Path

from diffractory.augment.phases import calculate_phase
from stage import stage

with stage(snakemake.log[0]):
    calculate_phase(
        phase=snakemake.wildcards.phase,
        phonons=Path(snakemake.output.phonons),
        run=Path(snakemake.output.run),
        settings=snakemake.params.settings,
        calculator_name=snakemake.params.calculator,
        device="cpu",
        seed=snakemake.params.seed,
    )
