"""The zoo: a synthetic language, and the tiny hybrids trained on it that ship with the package."""
