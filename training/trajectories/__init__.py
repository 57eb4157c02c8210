"""The teacher's trajectories: starting noises, sampling, what is kept, the cache on disk."""
