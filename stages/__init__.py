"""One small script a stage: read, call, write, say what was made."""
