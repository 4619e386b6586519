"""What a microscope and a foil do to patterns."""
