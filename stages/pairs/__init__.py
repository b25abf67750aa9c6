"""The pipeline of pair tasks, one small script a stage: how alike two texts are, duplicates, classes."""
