"""A run: config, student, probe, loop, state on disk, memory plan."""
