"""Scores of records, and the statistics that compare them; never a model."""
