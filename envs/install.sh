# Run by Snakemake in the working directory after it has made a conda environment.
pip install --no-deps -e .
