"""Winograd's form of 3x3 convolutions, with fewer products, for CPUs (Lavin and Gray, CVPR 2016, arXiv 1509.09308).

Convolutions are half of the work of a step of Stable Diffusion on a CPU. PyTorch's library for CPUs computes them
directly; cuDNN has this form itself.
"""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from sld.speed.weights import twin

M = TypeVar("M", bound=nn.Module)

SIDE = 2
"""Side of the square of results of a tile: F(2 x 2, 3 x 3) in the paper's words, with 16 products in place of 36."""

LEAST_CHANNELS = 256
"""Least number of channels. With fewer, the transforms cost more than the products that they save."""

# transforms of a tile, of a filter and of the products; section 4.1 of the paper
_B = torch.tensor([[1.0, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
_G = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
_A = torch.tensor([[1.0, 1, 1, 0], [0, 1, -1, -1]])


class Winograd(nn.Module):
    """A 3x3 convolution with stride 1 and padding 1, computed by products of transformed tiles.

    The sums are the same in another order. The weights take 16/9 of the memory.

    Args:
        conv: the convolution, with a bias; stays as it is.
    """

    of_tile: Tensor
    of_products: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        assert conv.bias is not None
        a, b, g = (of.to(conv.weight) for of in (_A, _B, _G))
        filters = torch.einsum("ij,dcjk,lk->ilcd", g, conv.weight.detach(), g)
        self.weight = nn.Parameter(filters.flatten(0, 1).contiguous(), requires_grad=False)
        self.bias = conv.bias
        # the product of a square matrix from both sides is the Kronecker square times its elements as a vector
        self.register_buffer("of_tile", torch.kron(b, b), persistent=False)
        self.register_buffer("of_products", torch.kron(a, a), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, d, h, w) for x (b, c, h, w), with channels innermost in memory."""
        h, w = x.shape[2:]
        rows, columns = -(-h // SIDE), -(-w // SIDE)
        x = F.pad(x.movedim(1, -1), (0, 0, 1, 1 + columns * SIDE - w, 1, 1 + rows * SIDE - h))
        tiles = x.unfold(1, SIDE + 2, SIDE).unfold(2, SIDE + 2, SIDE)  # overlapping by 2
        tiles = self.of_tile @ rearrange(tiles, "b y x c i j -> (i j) (b y x c)")
        products = rearrange(tiles, "k (t c) -> k t c", c=x.shape[-1]) @ self.weight
        sums = self.of_products @ rearrange(products, "k t d -> k (t d)")
        sizes = {"p": SIDE, "y": rows, "x": columns, "d": self.weight.shape[-1]}
        made = rearrange(sums, "(p q) (b y x d) -> b (y p) (x q) d", **sizes) + self.bias
        return made[:, :h, :w].movedim(-1, 1)


def with_winograd(network: M) -> M:
    """Return a copy of the network with its wide 3x3 convolutions in this form. Other weights share the memory.

    Args:
        network: stays as it is.

    Raises:
        ValueError: the network is in half precision, in which the differences of this form lose too many digits.
    """
    if any(weight.dtype.itemsize < 4 for weight in network.parameters()):
        raise ValueError("Winograd's form of convolutions needs float32: load the model with dtype=torch.float32")
    copy = twin(network)
    for parent in list(copy.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Conv2d) and _fits(child):
                setattr(parent, name, Winograd(child))
    return copy


def _fits(conv: nn.Conv2d) -> bool:
    return (
        conv.kernel_size == (3, 3)
        and conv.stride == (1, 1)
        and conv.padding == (1, 1)
        and conv.groups == 1
        and conv.bias is not None
        and min(conv.in_channels, conv.out_channels) >= LEAST_CHANNELS
    )
