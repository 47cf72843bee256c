"""The learned optimizer as ``torch.optim.Optimizer``, and differentiable in ``higher``.

    opt = LearnedOptimizer(model, "optimizer.safetensors")     an ordinary training loop
    with higher.innerloop_ctx(model, opt) as (fmodel, diffopt):
        diffopt.step(loss(fmodel))                             an unroll with meta-gradients

Both run the rules of a ``MetaOptimizer`` on the parameters of a model, each a matrix with a batch
axis of 1, the same code as the batched unroll. What rules want to see beyond gradients comes from
the model: the inputs of its layers where it is a *chain* (``chain``, ``passes``), and the loss,
meant as 1/2 ||f(w) - Y||^2, from the closure or from ``diffopt.step``. A rule that is not told what
it was told in meta-training is refused where its steps would have no scale (``told``).

Teleports through the data need a chain, data on which the action is exact, and the word of the user
that there is no other (``full_batch``); the scaling of hidden units needs a model whose symmetries
are found (``models``). Otherwise the update rule acts alone, after a warning.
"""

from metaopt.torch_optim.differentiable import DifferentiableLearnedOptimizer
from metaopt.torch_optim.finite import NonFiniteError
from metaopt.torch_optim.optimizer import LearnedOptimizer

__all__ = ["DifferentiableLearnedOptimizer", "LearnedOptimizer", "NonFiniteError"]
