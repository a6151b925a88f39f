"""Hybrid models seen through one vocabulary."""
