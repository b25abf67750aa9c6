"""Readers of each kind of source. They yield `Example` records that are not cleaned yet.

A reader knows its format and nothing of what happens to the rows later. Cleaning, duplicates and splits are in the
other modules of `reranker.data`.
"""
