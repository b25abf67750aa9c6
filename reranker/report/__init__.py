"""The page of a run. Numbers come in and a page goes out; nothing is computed here, and torch is not imported."""
