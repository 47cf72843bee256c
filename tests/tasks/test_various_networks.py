"""The networks of the wide families against torch's own, and exact facts about them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from metaopt.base.errors import UserError
from metaopt.tasks.various_layers import SMALL, STARTS, Block, sizes
from metaopt.tasks.various_networks import Recurrent, ResidualImages, convolutions, perceptron
from metaopt.tasks.various_transformers import Blocks, RowReader, TokenReader


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_a_block_is_the_layer_of_torch(first: bool, activation: str) -> None:
    ours = Block(12, 3, 20, first, activation, STARTS["torch"])
    theirs = nn.TransformerEncoderLayer(
        12, 3, 20, 0.0, activation, batch_first=True, norm_first=first
    )
    names = {
        "self_attn.in_proj_": "attention.joined.",
        "self_attn.out_proj.": "attention.o.",
        "linear1.": "up.",
        "linear2.": "down.",
    }
    weights = ours.state_dict()
    for name in theirs.state_dict():
        here = name
        for theirs_is, ours_is in names.items():
            here = here.replace(theirs_is, ours_is)
        theirs.state_dict()[name].copy_(weights.pop(here))
    assert not weights
    z = drawn(2, 5, 12)
    torch.testing.assert_close(ours(z), theirs(z), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("init", STARTS)
def test_a_causal_block_sees_nothing_later(init: str) -> None:
    block = Block(8, 2, 16, True, "gelu", STARTS[init], causal=True)
    z = drawn(2, 6, 8)
    later = z.clone()
    later[:, 4:] += 1
    torch.testing.assert_close(block(z)[:, :4], block(later)[:, :4])
    assert not torch.allclose(block(z)[:, 4], block(later)[:, 4])


def test_the_simple_recurrent_network_is_that_of_torch() -> None:
    ours = Recurrent(9, 4, 6)
    theirs = nn.RNN(4, 6, batch_first=True)
    for name, weight in (
        ("weight_ih_l0", ours.enter.weight),
        ("weight_hh_l0", ours.stay.weight),
        ("bias_ih_l0", ours.enter.bias),
        ("bias_hh_l0", torch.zeros(6)),
    ):
        theirs.get_parameter(name).data.copy_(weight)
    x = torch.arange(14).reshape(2, 7) % 9
    wanted = ours.head(theirs(ours.embed(x))[0])
    torch.testing.assert_close(ours(x), wanted, atol=1e-6, rtol=1e-5)


def test_perceptrons_have_norms_and_activations_between_layers_alone() -> None:
    kinds = [type(part) for part in perceptron([6, 5, 4, 3], "silu", "layer")]
    middle = [nn.Linear, nn.LayerNorm, nn.SiLU]
    assert kinds == [*middle, *middle, nn.Linear]
    assert [type(part) for part in perceptron([6, 3])] == [nn.Linear]


@pytest.mark.parametrize("pool", ["max", "stride"])
@pytest.mark.parametrize("channels", [[3, 5], [3, 4, 5]])
def test_convolutions_shrink_images_twice(pool: str, channels: list[int]) -> None:
    net = convolutions(8, channels, 10, "relu", "batch", pool)
    head = net[-1]
    assert isinstance(head, nn.Linear)
    assert head.in_features == 5 * 2 * 2
    assert net(drawn(6, 64)).shape == (6, 10)
    assert not dict(net.named_buffers())


def test_a_residual_block_of_zeros_passes_its_input_on() -> None:
    net = ResidualImages(8, 4, 2, 10, "relu", "none")
    x = drawn(3, 64)
    for name, weight in net.named_parameters():
        if name.startswith("blocks") and ".2." in name:
            nn.init.zeros_(weight)
    wanted = net.head(net.stem(x.reshape(3, 1, 8, 8)).relu().mean((2, 3)))
    torch.testing.assert_close(net(x), wanted)


def test_berts_own_start_is_small_everywhere() -> None:
    blocks = Blocks(32, 2, 64, 1, first=False, final=False, init="bert")
    for name, weight in TokenReader(40, 6, blocks, 40, normed=True).named_parameters():
        if weight.dim() > 1:
            assert float(weight.detach().std()) == pytest.approx(SMALL, rel=0.2), name
        elif "norm" not in name:
            assert not weight.any(), name


def test_a_tied_head_is_the_table_and_places_can_be_asked_for() -> None:
    net = TokenReader(11, 5, Blocks(8, 2, 16, 1, True, True), 11, tied=True)
    x = torch.arange(15).reshape(3, 5) % 11
    assert net.head is None
    assert net(x).shape == (3, 5, 11)
    at = torch.tensor([[0, 4], [1, 2], [3, 0]])
    wanted = torch.stack([row[places] for row, places in zip(net(x), at, strict=True)])
    torch.testing.assert_close(net(x, at), wanted)


def test_rows_of_images_have_places() -> None:
    net = RowReader(8, Blocks(12, 2, 24, 1, False, False), 10)
    images = drawn(2, 8, 8)
    turned = net(images.flip(1).flatten(1))
    assert not torch.allclose(net(images.flatten(1)), turned, atol=1e-3)
    nn.init.zeros_(net.places.weight)
    same = net(images.flatten(1)), net(images.flip(1).flatten(1))
    torch.testing.assert_close(*same, atol=1e-5, rtol=1e-5)


def test_sizes_are_read() -> None:
    assert sizes("hidden", "24-16-8") == [24, 16, 8]
    assert sizes("hidden", "") == []
    for mistake in ("24,16", "0", "-3", "a"):
        with pytest.raises(UserError, match="hidden: found"):
            sizes("hidden", mistake)
