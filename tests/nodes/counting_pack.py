"""A node pack of the tests' own, for the server: how often a model is asked, counted from outside."""

SAMPLES = []


class CountCalls:
    """The model, each of whose calls is counted from now on: samples that go through the network."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"model": ("MODEL",)}})
    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "count", "test"

    def count(self, model):
        SAMPLES.clear()

        def counted(ask, options):
            SAMPLES.append(len(options["input"]))
            return ask(options["input"], options["timestep"], **options["c"])

        model = model.clone()
        model.set_model_unet_function_wrapper(counted)
        return (model,)


class TellCalls:
    """How many samples have gone through the network once the latent is there, and how many it has."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"latent": ("LATENT",)}})
    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "tell", "test", True

    def tell(self, latent):
        return {"ui": {"counted": [sum(SAMPLES), len(latent["samples"])]}}


NODE_CLASS_MAPPINGS = {"TestCountCalls": CountCalls, "TestTellCalls": TellCalls}
