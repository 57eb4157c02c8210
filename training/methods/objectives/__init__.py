"""Objectives: small pure functions from who answers and a batch to a loss for each sample (B,), one file
each.
"""
