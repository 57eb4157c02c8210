"""The command line, and runs without ComfyUI."""
