"""The training methods, one file each, and what they share: draws of times, distances, the teacher's step."""
