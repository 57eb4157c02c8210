"""The LoRA and its exact gradient: hooks, the graph that survives writes, recomputation."""
