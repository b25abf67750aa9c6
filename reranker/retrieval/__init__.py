"""Rank the corpus for a query."""
