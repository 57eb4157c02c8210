"""All that knows how ComfyUI loads, patches, samples and names things."""
