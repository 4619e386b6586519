"""One module per model; no input or output of files here."""
