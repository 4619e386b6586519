"""Crystal structures: retrieval, cleaning, symmetry labels, duplicates and splits."""
