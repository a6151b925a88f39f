"""Running a model over samples under plans, and what a run leaves behind."""
