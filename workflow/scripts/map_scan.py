"""Map the crystal systems of a scan with one model."""

from pathlib import Path

from diffractory.experiment.maps import MapSettings
from diffractory.experiment.predict import predict_scan
from stage import stage

with stage(snakemake.log[0]):
    predict_scan(
        scan=Path(snakemake.input.scan),
        model=Path(snakemake.input.model),
        output=Path(snakemake.output.map),
        settings=MapSettings(**snakemake.params.settings),
        pixel_size=snakemake.params.pixel_size,
        energy=snakemake.params.energy,
        device=snakemake.params.device,
        threads=snakemake.params.threads,
    )
