"""A method as somebody would add one: the student learns the teacher's answer at one noise level."""

from fewstep.training.methods.consistency_loss import noised
from fewstep.training.methods.method import Method, draw_samples
from fewstep.training.methods.phases import shifted_level


def draw(context):
    batch = draw_samples(context)
    return {**batch, "sigma": shifted_level(context.phases, batch["u"]).float().clamp_min(0.05)}


def loss(context, batch):
    image = context.data.images[batch["pick"]]
    x = noised(image, image.flip(0), context.path, batch["sigma"])
    answers = (who(x, batch["sigma"], batch["condition"]) for who in (context.student, context.teacher))
    return context.metric(*answers)


METHOD = Method(
    name="toy",
    title="toy",
    needs="images",
    draw=draw,
    loss=loss,
    level=shifted_level,
)
