"""Exact answers that tests compare with: Gaussian mixtures, churn conversions, categorical data, marginals."""
