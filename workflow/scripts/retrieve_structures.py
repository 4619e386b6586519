"""Retrieve the structures of one data set, as its source gives them."""

import os
from pathlib import Path

from diffractory.structures.sources import retrieve_structures
from stage import stage

with stage(snakemake.log[0]):
    retrieved = Path(snakemake.output.retrieved)
    retrieve_structures(
        settings=snakemake.params.settings,
        dataset=snakemake.wildcards.dataset,
        data_folder=Path(os.environ.get("DIFFRACTORY_DATA", "")),
        download_folder=retrieved.parent / "download",
        retrieved=retrieved,
        run=Path(snakemake.output.run),
        seed=snakemake.params.seed,
    )
