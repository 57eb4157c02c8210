"""Forward processes in the real host: chosen, shown, trained on and undone."""

import pytest
import torch
from graph import load, pack, run

pytestmark = pytest.mark.comfy

PIXELATE = {"kind": "pixelate", "largest": 8}


@pytest.fixture
def emoji(host):
    """(IMAGE of held-out emoji, LATENT of others)."""
    data = pack(host, "training.demo.data")
    held_out, whole = (data.to_pixels(data.load(split, core=False)[0]) for split in ("held-out", "train"))
    image = ((held_out + 1) / 2).clamp(0, 1).movedim(1, -1)
    return image, {"samples": ((whole + 1) / 2).clamp(0, 1)}


def process(host, **kind):
    return run(host, "FewstepForwardProcess", kind=kind)[0]


def test_processes_follow_one_another_and_wrong_ones_are_refused(host):
    blur = process(host, kind="blur", width=2.0)
    assert blur == [{"kind": "blur", "width": 2.0}]
    (both,) = run(host, "FewstepForwardProcess", kind={"kind": "noise", "strength": 0.1}, after=blur)
    assert [part["kind"] for part in both] == ["blur", "noise"] and blur == [{"kind": "blur", "width": 2.0}]
    with pytest.raises(ValueError, match="parts must be one or more processes, of which only the last has noise"):
        run(host, "FewstepForwardProcess", kind={"kind": "blur", "width": 2.0}, after=both)
    with pytest.raises(ValueError, match="largest must be a power of two"):
        process(host, kind="pixelate", largest=6)


@pytest.mark.parametrize("kind", ["flow", "epsilon"])
def test_corrupting_shows_the_way_and_keeps_the_mean(host, emoji, kind):
    model, vae, *_ = load(host, kind)
    image = emoji[0][:3]
    latent, shown, strip = run(host, "FewstepCorrupt", model=model, vae=vae, image=image, process=process(host, **PIXELATE),
                               amount=1.0, seed=0)
    assert latent["samples"].shape == (3, 3, 32, 32) and shown.shape == image.shape and strip.shape == (1, 32, 8 * 32, 3)
    squares = shown.reshape(3, 4, 8, 4, 8, 3)
    assert float(squares.std(dim=(2, 4)).max()) < 1e-5 and torch.allclose(shown.mean((1, 2)), image.mean((1, 2)), atol=1e-4)
    assert torch.allclose(strip[0, :, :32], image[0], atol=1e-5) and torch.allclose(strip[0, :, -32:], shown[0], atol=1e-5)


def test_a_lora_learns_to_undo_a_process_and_the_restorer_uses_it(host, emoji):
    """Distil with a process on emoji, and restore held-out ones better than they were."""
    image, pictures = emoji
    model, vae, positive, negative, _ = load(host, "flow")
    made = process(host, **PIXELATE)
    *_, name = run(host, "FewstepDistil", model=model, positive=negative, negative=negative, pictures=pictures, process=made,
                   latent={"samples": torch.zeros(1, 3, 32, 32)}, steps=2, cfg=1.0, quality="quick", name="restorer", seed=0,
                   updates=25, batch=8, vae=vae)
    latent, shown, _ = run(host, "FewstepCorrupt", model=model, vae=vae, image=image, process=made, amount=1.0, seed=0)
    (out,) = run(host, "FewstepRestore", model=model, lora_name=name, positive=negative, latent=latent, steps=0, renew=0.0, seed=0)
    error = lambda pixels: float((pixels - image).square().mean().sqrt())
    assert error(vae.decode(out["samples"])) < 0.92 * error(shown)
    (again,) = run(host, "FewstepRestore", model=model, lora_name=name, positive=negative, latent=latent, steps=2, renew=0.0,
                   seed=9, process=made)
    assert torch.equal(out["samples"], again["samples"])        # nothing is drawn
    with pytest.raises(ValueError, match="was trained to restore them. Wire it to Restore"):
        run(host, "FewstepLoadLora", model=model, lora_name=name, strength=1.0)
    other, *_ = load(host, "epsilon")
    with pytest.raises(ValueError, match="lora_name must be for a model on the .* path, restorer_00001.safetensors was made for "):
        run(host, "FewstepRestore", model=other, lora_name=name, positive=negative, latent=latent, steps=0, renew=0.0, seed=0)


def test_a_lora_that_draws_is_no_restorer(host):
    model, vae, positive, negative, labels = load(host, "flow")
    *_, name = run(host, "FewstepDistil", model=model, positive=labels, negative=negative, steps=2, cfg=2.0, quality="quick",
                   latent={"samples": torch.zeros(1, 3, 32, 32)}, name="drawer", seed=0, updates=1, batch=1)
    with pytest.raises(ValueError, match="must be a LoRA that was trained to restore where no process is wired, got none"):
        run(host, "FewstepRestore", model=model, lora_name="none", positive=positive, latent={"samples": torch.zeros(1, 3, 32, 32)},
            steps=0, renew=0.0, seed=0)
    with pytest.raises(ValueError, match="must be a LoRA that was trained to restore, drawer_00001.safetensors was not"):
        run(host, "FewstepRestore", model=model, lora_name=name, positive=positive, latent={"samples": torch.zeros(1, 3, 32, 32)},
            steps=0, renew=0.0, seed=0)
