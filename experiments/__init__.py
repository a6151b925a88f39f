"""Experiments: one module per claim, each run with ``python -m experiments.NAME``."""
