"""The pipeline of the comparison, with one small script per stage."""
