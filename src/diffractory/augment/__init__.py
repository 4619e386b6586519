"""What a microscope and a foil do to patterns."""

UNPERTURBED = "none"
"""What a table of conditions calls the patterns that nothing was done to."""
