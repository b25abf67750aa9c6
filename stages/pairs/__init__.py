"""The pipeline of pair tasks, with one small script per stage."""
