"""What every package uses: parameters, artifacts, errors, progress, and where things are computed."""
