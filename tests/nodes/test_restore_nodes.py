"""Forward processes in the real host: chosen, shown, trained on and undone."""

import pytest
import torch
from graph import load, pack, run, sample_custom

pytestmark = pytest.mark.comfy

PIXELATE = {"kind": "pixelate", "largest": 8}
EMPTY = {"samples": torch.zeros(1, 3, 32, 32)}


@pytest.fixture
def emoji(host):
    """(IMAGE of held-out emoji, LATENT of others)."""
    data = pack(host, "training.models.demo.data")
    held_out, whole = (data.to_pixels(data.load(split, core=False)[0]) for split in ("held-out", "train"))
    image = ((held_out + 1) / 2).clamp(0, 1).movedim(1, -1)
    return image, {"samples": ((whole + 1) / 2).clamp(0, 1)}


def restore(host, model, name, positive, latent, **options):
    """The outputs of Restore with its defaults but for `options`."""
    defaults = {"amount": 1.0, "steps": 0, "renew": 0.0, "seed": 0}
    return run(
        host,
        "FewstepRestore",
        model=model,
        lora_name=name,
        positive=positive,
        latent=latent,
        **{**defaults, **options},
    )


def process(host, **kind):
    return run(host, "FewstepForwardProcess", kind=kind)[0]


def test_processes_follow_one_another_and_wrong_ones_are_refused(host):
    blur = process(host, kind="blur", width=2.0)
    assert blur == [{"kind": "blur", "width": 2.0}]
    (both,) = run(host, "FewstepForwardProcess", kind={"kind": "noise", "strength": 0.1}, after=blur)
    assert [part["kind"] for part in both] == ["blur", "noise"] and blur == [{"kind": "blur", "width": 2.0}]
    with pytest.raises(
        ValueError, match="parts must be one or more processes, of which only the last has noise"
    ):
        run(host, "FewstepForwardProcess", kind={"kind": "blur", "width": 2.0}, after=both)
    with pytest.raises(ValueError, match="largest must be a power of two"):
        process(host, kind="pixelate", largest=6)


@pytest.mark.parametrize("kind", ["flow", "epsilon"])
def test_corrupting_shows_the_way_and_keeps_the_mean(host, emoji, kind):
    model, vae, *_ = load(host, kind)
    image = emoji[0][:3]
    latent, shown, strip = run(
        host,
        "FewstepCorrupt",
        model=model,
        vae=vae,
        image=image,
        process=process(host, **PIXELATE),
        amount=1.0,
        seed=0,
    )
    assert (
        latent["samples"].shape == (3, 3, 32, 32)
        and shown.shape == image.shape
        and strip.shape == (1, 32, 8 * 32, 3)
    )
    squares = shown.reshape(3, 4, 8, 4, 8, 3)
    assert float(squares.std(dim=(2, 4)).max()) < 1e-5 and torch.allclose(
        shown.mean((1, 2)), image.mean((1, 2)), atol=1e-4
    )
    assert torch.allclose(strip[0, :, :32], image[0], atol=1e-5) and torch.allclose(
        strip[0, :, -32:], shown[0], atol=1e-5
    )


def test_a_lora_learns_to_undo_a_process_and_the_restorer_uses_it(host, emoji):
    """Distil with a process on emoji, and restore held-out ones better than they were."""
    image, pictures = emoji
    model, vae, positive, negative, _ = load(host, "flow")
    made = process(host, **PIXELATE)
    *_, name = run(
        host,
        "FewstepDistil",
        model=model,
        positive=negative,
        negative=negative,
        pictures=pictures,
        process=made,
        latent=EMPTY,
        steps=2,
        cfg=1.0,
        quality="quick",
        name="restorer",
        seed=0,
        updates=25,
        batch=8,
        vae=vae,
    )
    latent, shown, _ = run(
        host, "FewstepCorrupt", model=model, vae=vae, image=image, process=made, amount=1.0, seed=0
    )
    (out,) = restore(host, model, name, negative, latent)
    error = lambda pixels: float((pixels - image).square().mean().sqrt())
    assert error(vae.decode(out["samples"])) < 0.92 * error(shown)
    (again,) = restore(host, model, name, negative, latent, steps=2, seed=9, process=made)
    assert torch.equal(out["samples"], again["samples"])  # nothing is drawn
    with pytest.raises(ValueError, match="was trained to restore them. Wire it to Restore"):
        run(host, "FewstepLoadLora", model=model, lora_name=name, strength=1.0)
    other, *_ = load(host, "epsilon")
    with pytest.raises(
        ValueError,
        match="lora_name must be for a model on the .* path, restorer_00001.safetensors was made for ",
    ):
        restore(host, other, name, negative, latent)


def test_a_lora_that_draws_is_no_restorer(host):
    model, vae, positive, negative, labels = load(host, "flow")
    *_, name = run(
        host,
        "FewstepDistil",
        model=model,
        positive=labels,
        negative=negative,
        steps=2,
        cfg=2.0,
        quality="quick",
        latent=EMPTY,
        name="drawer",
        seed=0,
        updates=1,
        batch=1,
    )
    with pytest.raises(
        ValueError, match="must be a LoRA that was trained to restore where no process is wired, got none"
    ):
        restore(host, model, "none", positive, EMPTY)
    with pytest.raises(
        ValueError, match="must be a LoRA that was trained to restore, drawer_00001.safetensors was not"
    ):
        restore(host, model, name, positive, EMPTY)


def test_no_step_returns_the_latent(host):
    model, _, positive, negative, _ = load(host, "flow")
    import comfy.samplers

    made = pack(host, "training.formats.processes").process_of([PIXELATE])
    options = {"process": made, "destroyed": torch.zeros(1, 3, 32, 32), "kappa": 0.0, "amount": 1.0}
    sampler = comfy.samplers.KSAMPLER(pack(host, "nodes.restore").sample_process, options)
    latent = {"samples": torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))}
    out = sample_custom(
        host, model, 1.0, (model, None, positive, negative), sampler, torch.zeros(1), latent=latent
    )
    assert (out - latent["samples"]).abs().max() < 1e-6


def test_a_weaker_destruction_is_undone_from_where_it_stands(host, emoji, monkeypatch):
    """With a model that knows the answer, restoring from `amount` gives it, whatever the amount."""
    module = pack(host, "nodes.restore")
    image = emoji[0][:2]
    model, vae, positive, *_ = load(host, "flow")
    made = process(host, **PIXELATE)
    latent, *_ = run(
        host, "FewstepCorrupt", model=model, vae=vae, image=image, process=made, amount=0.4, seed=0
    )
    whole = model.model.process_latent_in(vae.encode(image))
    monkeypatch.setattr(
        module,
        "restore",
        lambda call, seen, x, times, kappa, noise: original(
            lambda x, sigma: whole.to(x), seen, x, times, kappa, noise
        ),
    )
    original = pack(host, "training.methods.restoration").restore
    error = lambda amount: float(
        (
            vae.decode(
                restore(host, model, "none", positive, latent, process=made, amount=amount, steps=2)[0][
                    "samples"
                ]
            )
            - image
        )
        .abs()
        .max()
    )
    assert error(0.4) < 1e-4 < 0.05 < error(1.0)


def test_holes_are_those_of_the_noise_mask_and_must_be_there(host, emoji):
    model, vae, positive, *_ = load(host, "flow")
    latent = {"samples": vae.encode(emoji[0][:1])}
    made = process(host, kind="mask", fill=0.0)
    with pytest.raises(ValueError, match="latent must have missing pixels to be filled in, got none"):
        restore(host, model, "none", positive, latent, process=made)
    mask = torch.zeros(1, 32, 32)
    mask[:, 8:16, 8:16] = 1
    (out,) = restore(host, model, "none", positive, {**latent, "noise_mask": mask}, process=made, steps=3)
    changed = (out["samples"] - latent["samples"]).abs().amax(1)[0] > 1e-3
    assert changed[8:16, 8:16].float().mean() > 0.9 and not changed[mask[0] == 0].any()
