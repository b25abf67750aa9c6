"""Hard negatives from a first-stage retriever, with guards against false negatives."""
