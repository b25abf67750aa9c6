"""Ranks the corpus for queries."""
