"""From the sources to clean, split tables."""
