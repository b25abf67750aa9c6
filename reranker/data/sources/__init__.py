"""Where the text comes from: each kind of source reads its format and yields `Example` records, uncleaned.

A source knows a format and nothing of what happens to the rows later; cleaning, duplicates and splits are the
business of `reranker.dataset`.
"""
