"""Pair tasks: how alike two texts are, whether they are duplicates, which class they fall into."""
