"""Several processes that make one run: which share of the work is whose, sums over all, who has ended."""
