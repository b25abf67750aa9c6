"""Models that come with installed packages, which are fetched from no model hub."""
