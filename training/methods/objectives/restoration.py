"""Restoration: the student learns the picture from what a forward process has left of it.

    loss = d( f(x_t, t), x0 ),   x_t = F_t(x0, eps)

which with d = squared error is -log q(x0 | x_t) of a Gaussian of fixed width, the model that a unified
diffusion process asks for (Su 2022, kexue.fm/archives/9262, eq. 5); its best answer is the mean of all
pictures that could have become x_t.
"""

from ..distances import squared_error


def restoration(student, process, x0, eps, t, metric=squared_error):
    """Losses (B,) of student(x_t, t) -> x0 on pictures x0 (B, C, H, W) destroyed to the times t (B,) in [0,
    1].
    """
    return metric(student(process.corrupt(x0, eps, t), t), x0)
