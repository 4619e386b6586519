"""Metrics, tables and figures beside the published values, and the report that gathers them."""
