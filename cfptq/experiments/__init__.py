"""Experiment files and their runs, for the researcher."""
