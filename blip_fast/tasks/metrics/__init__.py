"""Metrics of the published evaluations, from plain scores and texts."""
