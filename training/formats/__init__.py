"""Files and documents: recipes, LoRA keys, prompts, forward processes by name."""
