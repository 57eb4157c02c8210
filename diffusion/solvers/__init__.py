"""Solvers written out as weights of predictions, and their fit to trajectories."""
