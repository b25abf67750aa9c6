"""Measure systems and compare them with statistics."""
