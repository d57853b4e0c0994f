"""Attacks on classifiers of images in [0, 1]: every pixel moves by at most `strength`.

Scores are any function from images (batch, …) to class scores (batch, classes). An attack that follows gradients follows
those of the scores that it is given, so a model whose own gradient says little is attacked through others; `succeeded`
is always asked of the model itself.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

Scores = Callable[[Tensor], Tensor]


def within(moved: Tensor, images: Tensor, strength: float) -> Tensor:
    """The nearest images in [0, 1] that differ by at most the strength."""
    return torch.minimum(torch.maximum(moved, images - strength), images + strength).clamp(0, 1)


def slope(scores: Scores, images: Tensor, labels: Tensor) -> Tensor:
    """The gradient of each image's cross-entropy."""
    images = images.detach().requires_grad_()
    (found,) = torch.autograd.grad(cross_entropy(scores(images), labels, reduction="sum"), images)
    return found


def fgsm(scores: Scores, images: Tensor, labels: Tensor, strength: float) -> Tensor:
    """One step of the sign. Goodfellow, Shlens and Szegedy, "Explaining and harnessing adversarial examples", ICLR 2015."""
    return within(images + strength * slope(scores, images, labels).sign(), images, strength)


def pgd(
    scores: Scores, images: Tensor, labels: Tensor, strength: float, steps: int = 20, share: float = 0.15
) -> Tensor:
    """Steps of share × strength along the sign, from a random start. Madry et al., "Towards deep learning models resistant
    to adversarial attacks", ICLR 2018."""
    moved = within(images + strength * (2 * torch.rand_like(images) - 1), images, strength)
    for _ in range(steps):
        moved = within(moved + share * strength * slope(scores, moved, labels).sign(), images, strength)
    return moved


@torch.no_grad()
def squares(scores: Scores, images: Tensor, labels: Tensor, strength: float, queries: int = 150) -> Tensor:
    """Random squares of ±strength, kept where the margin falls; sees scores alone, no gradient. After Andriushchenko et al.,
    "Square attack", ECCV 2020, without its schedule: sides are drawn from 1 to half of the image."""

    def margin(at: Tensor) -> Tensor:
        found = scores(at)
        own = found.gather(1, labels[:, None])[:, 0]
        return own - found.scatter(1, labels[:, None], -torch.inf).amax(1)

    moved = within(images + strength * torch.randn_like(images).sign(), images, strength)
    least = margin(moved)
    high, wide = images.shape[-2:]
    for _ in range(queries):
        side = int(torch.randint(1, max(high // 2, 1) + 1, ()))
        top, left = int(torch.randint(high - side + 1, ())), int(torch.randint(wide - side + 1, ()))
        signs = torch.randn(*images.shape[:-2], 1, 1).sign()
        tried = moved.clone()
        tried[..., top : top + side, left : left + side] = (
            images[..., top : top + side, left : left + side] + strength * signs
        )
        tried = within(tried, images, strength)
        found = margin(tried)
        better = found < least
        moved = torch.where(better.view(-1, *[1] * (images.ndim - 1)), tried, moved)
        least = torch.minimum(found, least)
    return moved


@torch.no_grad()
def right(scores: Scores, images: Tensor, labels: Tensor) -> Tensor:
    """Which images the model still gets right, (batch,)."""
    return scores(images).argmax(1) == labels
