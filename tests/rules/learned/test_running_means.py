"""Running means and decays are the same with a graph as where they are written in place."""

from __future__ import annotations

import torch

from metaopt.rules.learned.running import means_over, running_means, shrinking

DECAYS = (0.5, 0.9)


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_means_and_what_is_over_the_root_have_the_same_bits_either_way() -> None:
    G, old, root = drawn(3, 1, 7), drawn(3, 2, 7), drawn(3, 1, 7).exp()
    kept = [x.clone() for x in (G, old, root)]
    m = running_means(G, old, DECAYS)
    over = means_over(m, G, root)
    with torch.no_grad():
        assert torch.equal(running_means(G, old, DECAYS), m)
        assert torch.equal(means_over(m, G, root), over)
    for i, decay in enumerate(DECAYS):
        torch.testing.assert_close(m[:, i], decay * old[:, i] + (1 - decay) * G[:, 0])
    torch.testing.assert_close(over, torch.cat([m, G], dim=1) / root)
    # Nothing that was given is written to.
    assert all(torch.equal(x, was) for x, was in zip((G, old, root), kept, strict=True))


def test_meta_gradients_flow_through_means() -> None:
    G, old = (x.double().requires_grad_() for x in (drawn(2, 1, 3), drawn(2, 2, 3)))
    root = drawn(2, 1, 3).double().exp().requires_grad_()

    def found(G: torch.Tensor, old: torch.Tensor, root: torch.Tensor) -> torch.Tensor:
        return means_over(running_means(G, old, DECAYS), G, root)

    assert torch.autograd.gradcheck(found, (G, old, root))


def test_weights_shrink_where_there_is_a_gradient() -> None:
    W, G = drawn(2, 3, 4).requires_grad_(), drawn(2, 3, 4)
    G[0, 1] = 0
    by = torch.full((2, 1, 1), -0.5, requires_grad=True)
    shrunk = shrinking(W, G.requires_grad_(), by)
    assert torch.equal(shrunk, torch.where(G == 0, 0.0, -0.5 * W))
    shrunk.sum().backward()
    assert W.grad is not None
    assert torch.equal(W.grad, torch.where(G == 0, 0.0, by.detach().expand_as(W)))
    moving = torch.where(G == 0, 0.0, W.detach())
    torch.testing.assert_close(by.grad, moving.sum((1, 2), keepdim=True))
