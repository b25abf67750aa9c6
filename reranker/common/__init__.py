"""Modules that every package uses: parameters, artifacts, errors, progress, and the engines that compute."""
