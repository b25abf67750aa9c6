"""Hard negatives from a first stage, with guards against false ones."""
