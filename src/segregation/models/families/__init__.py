"""One small file of data per model family."""
