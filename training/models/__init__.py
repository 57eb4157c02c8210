"""What answers: the denoiser protocol, diffusers folders, model families, the packaged teachers."""
