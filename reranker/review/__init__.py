"""Whether a change is a gain, a loss or noise."""
