"""Microbenchmarks of specfast's operators against the published way to compute them; run `python -m bench`."""
