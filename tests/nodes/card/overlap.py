"""How much of what streamed weights take to arrive is hidden behind the computing of other layers, by the
times of a card whose queues are the host's own streams.

    python overlap.py FAMILY

prints a line of JSON for the host's two streams, and one for none (a planted fault): of a forward pass and of
one with its gradient, in operations, how long all copies and all else take, and how long the card is at work.
"""

import json
import sys
import tempfile
from pathlib import Path

import host
import pages
import safetensors.torch
import torch
import zoo
from device import CURRENT, MAIN, TIMELINE, PretendedCard, Stream

FAMILY = sys.argv[1]
session, residency = host.pack("nodes.comfy.session"), host.pack("nodes.comfy.residency")
denoisers = host.pack("nodes.comfy.denoiser")
backwards, loras = host.pack("training.adapter.backward"), host.pack("training.adapter.lora")


def figures(run):
    """Of what that asks of the card, from a moment at which it is idle."""
    for stream in {entry[1] for entry in TIMELINE}:
        stream.time = 0.0
    Stream.computer = 0.0
    TIMELINE.clear()
    run()
    lengths = [(what, end - begin) for what, _, begin, end in TIMELINE]
    copies = [entry for entry in TIMELINE if entry[0] == "copy" and entry[1] is not MAIN]
    return {
        "copies": sum(length for what, length in lengths if what == "copy"),
        "computing": sum(length for what, length in lengths if what != "copy"),
        "all": max(end for *_, end in TIMELINE),
        "streams": len({entry[1] for entry in copies}),
    }


def measured(file, streams):
    host.management.NUM_STREAMS = streams
    host.management.STREAMS.clear()
    host.management.stream_counters.clear()
    with torch.inference_mode():
        model = host.sd.load_diffusion_model(file)
    with session.training_session(model, residency.STREAMED) as patcher:
        one, other = zoo.conditioning(FAMILY), zoo.conditioning(FAMILY, 1)
        denoiser = denoisers.ComfyDenoiser(patcher, one, other, zoo.latent(FAMILY))
        lora = loras.Lora(denoiser.module, 2, device=denoiser.device)
        backward = backwards.Backward(denoiser.module, lora.parameters(), False, denoiser.streamed)
        sigma, x = denoiser.sigma_of(torch.tensor([0.5])).float(), zoo.latent(FAMILY)

        def answer():
            return denoiser(x, sigma, torch.tensor([0])).square().mean()

        with torch.no_grad():
            forward = figures(answer)
        backward(answer)  # what is looked at once
        both = figures(lambda: backward(answer))
        lora.remove()
    return {"forward": forward, "with its gradient": both}


def main():
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        tensors = {key: value.contiguous() for key, value in zoo.state_dict(FAMILY).items()}
        safetensors.torch.save_file(tensors, file)
        host.answer_as_a_card(bfloat16=False)
        pages.install()
        pages.ROOM.room = 0  # every weight through the streams' buffers
        with PretendedCard():
            assert CURRENT == [MAIN]
            for streams in (2, 0):
                print(json.dumps({"streams": streams, **measured(str(file), streams)}), flush=True)


if __name__ == "__main__":
    main()
