"""Pair tasks: score how similar two texts are, detect duplicates, or predict the class of a pair."""
