"""Pictures and figures of a run."""
