"""All that knows how ComfyUI loads, patches, samples and names things; one file for each of these.

levels          a MODEL's path, prediction and noise levels
latents         a LATENT as a MODEL takes it
decoding        latents to pixels
folders         where Fewstep keeps things
families        the usual settings of a MODEL
model_info      the description of a model for a plot, also from a file's header
lora_files      the user's LoRA files, as the stock loader reads them
fresh_noise     which noise a picture of a batch gets while it is sampled
fingerprints    hashes that tell weights, patches and settings apart
session         a MODEL loaded for training, and put back
kernels         the host's fused operators, with a gradient while a model is trained
precision       in which precision it computes
residency       where its weights live while gradients run through it: on the card, or fetched for each call
denoiser        a loaded MODEL as `training` asks it: one prediction, differentiable
guider_teacher  a guider as `training` asks it: what the host's own sampling predicts
probing         a SAMPLER on a function in the place of the model
"""
