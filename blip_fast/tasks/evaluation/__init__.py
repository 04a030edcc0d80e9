"""Evaluation as published: a model, the own share of a data set, and result files merged over the ranks."""
