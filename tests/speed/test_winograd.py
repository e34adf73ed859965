"""Winograd's form of a convolution is that convolution.

Mutants seen to fail: a sign in each of the three matrices, no border added for odd sides, rows and columns of a tile
exchanged before the products or after them, convolutions of any width replaced, those of the network itself replaced.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import ALGORITHM, EXACT, NETWORK
from torch import nn
from torch.testing import assert_close

from sld.config import UNetConfig
from sld.models.denoiser import Cond
from sld.models.unet import UNet
from sld.published import MINI
from sld.speed.compiled import compiled_blocks
from sld.speed.winograd import LEAST_CHANNELS, Winograd, with_winograd

# two levels as wide as need be, with a change of size between them
WIDE = UNetConfig(
    channels=(LEAST_CHANNELS, LEAST_CHANNELS), res_blocks=1, attention=(True, False), heads=(4, 4), depth=(1, 1),
    context=16, linear_projection=True, groups=32,
)  # fmt: skip


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return UNet(WIDE).eval().requires_grad_(False)


def predict(unet, x):
    torch.manual_seed(1)
    return unet(x, torch.tensor(421), Cond(torch.randn(len(x), 5, 16)))


@pytest.mark.parametrize("size", [(8, 8), (7, 8), (6, 5), (1, 1), (2, 3)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@torch.no_grad()
def test_it_computes_the_convolution(size, layout):
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 10, 3, padding=1).double()
    x = torch.randn(3, 6, *size, dtype=torch.float64).contiguous(memory_format=layout)

    assert_close(Winograd(conv)(x), conv(x), **ALGORITHM)


@torch.no_grad()
def test_in_float32_at_stable_diffusions_widths_it_is_as_near_to_the_exact_sums():
    """No farther than twice the direct kernel's distance, whatever that kernel is; here it is a tenth of it."""
    torch.manual_seed(0)
    conv = nn.Conv2d(1280, 640, 3, padding=1)
    x = torch.randn(1, 1280, 8, 8)
    exact = F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1)

    made, direct = Winograd(conv)(x), conv(x)

    assert (made - exact).abs().max() <= 2 * (direct - exact).abs().max()
    assert_close(made, direct, **NETWORK)


@torch.no_grad()
def test_an_image_is_the_same_to_the_bit_in_any_batch():
    torch.manual_seed(0)
    made = Winograd(nn.Conv2d(320, 320, 3, padding=1))
    x = torch.randn(11, 320, 8, 8)
    whole = made(x)

    for n in range(1, 11):
        assert_close(made(x[:n]), whole[:n], **EXACT)


@torch.no_grad()
def test_a_network_predicts_the_same_with_it(unet):
    for side in (8, 7):
        x = torch.randn(2, 4, side, side)
        assert_close(predict(with_winograd(unet), x), predict(unet, x), **NETWORK)


def test_wide_convolutions_that_keep_the_size_are_replaced_and_all_else_is_shared(unet):
    before = dict(unet.named_parameters())
    twin = with_winograd(unet)

    replaced = {name for name, module in twin.named_modules() if isinstance(module, Winograd)}
    assert replaced == {
        name
        for name, module in unet.named_modules()
        if isinstance(module, nn.Conv2d)
        and module.kernel_size == (3, 3)
        and (name.endswith("resample.conv") or ".res." in name)
    }
    assert len(replaced) == 2 * (2 + 2 + 4) + 1
    assert isinstance(twin.down[0].resample, nn.Conv2d)  # its stride is 2
    for name, weight in twin.named_parameters():
        assert (weight is before[name]) == (name.removesuffix(".weight") not in replaced)
    assert dict(unet.named_parameters()).keys() == before.keys()
    assert not any(isinstance(module, Winograd) for module in unet.modules())


def test_the_embedded_models_convolutions_are_too_narrow():
    assert not any(isinstance(module, Winograd) for module in with_winograd(UNet(MINI.unet)).modules())


@torch.no_grad()
def test_its_blocks_compile():
    torch.manual_seed(0)
    one_level = replace(WIDE, channels=WIDE.channels[:1], attention=(True,), heads=(4,), depth=(1,))
    twin, x = with_winograd(UNet(one_level).eval().requires_grad_(False)), torch.randn(1, 4, 8, 8)
    assert_close(predict(compiled_blocks(twin, backend="eager"), x), predict(twin, x), **EXACT)


def test_half_precision_is_refused(unet):
    with pytest.raises(ValueError, match=r"needs float32: load the model with dtype=torch\.float32"):
        with_winograd(UNet(MINI.unet).half())
