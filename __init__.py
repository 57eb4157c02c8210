"""Fewstep: make the model that is wired in a ComfyUI graph good in 1 to 8 steps."""

WEB_DIRECTORY = "./js"
OLDEST = (0, 26)  # ComfyUI that the tests were seen to pass in


async def comfy_entrypoint() -> object:
    """ComfyUI asks for the extension here; nothing is imported before."""
    import logging

    from comfyui_version import __version__ as version

    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        logging.warning(
            f"Fewstep needs ComfyUI {oldest} or newer, this is {version}: update it if nodes fail."
        )
    from .nodes import FewstepExtension

    return FewstepExtension()
