"""Turns the sources into clean tables that are split into train, dev and test."""
