"""From pattern stores to trained models."""
