"""Exact answers that tests compare with: Gaussian mixtures, conversions of churn, noise schedules as SDEs,
paths as processes, categorical data, marginals.
"""
