"""Data with a model and a loss: the gradient of the mean loss, and those of single samples.

    L = 1/N sum_n L_n,   grad L = 1/N sum_n g_n,   g_n = grad L_n

Single samples go through ``torch.func`` (vmap of grad) where it can run the model, and one after
the other where it cannot. Weights, gradients and buffers of the model are left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from metaopt.landscape.data import Data, arguments_of, pairs_of, rows, tensors_of, with_tensors
from metaopt.symmetry.discovery.find import plain
from metaopt.symmetry.modules import tensor_at

Loss = Callable[[Any, Tensor], Tensor]
"""(outputs, targets) -> a scalar, a mean over the samples, as ``nn.functional.cross_entropy``."""
ENTRIES = 2**24
"""Entries of per-sample gradients that are held at a time."""
CHECKED = 4
"""Samples on which the mean of gradients is compared with the gradient of the mean."""


FLOAT32 = torch.finfo(torch.float32).eps
"""Models in float64 may compute in float32 inside, as the norms of Llama do."""


class Samples:
    """A model, a loss and data: batches, the mean gradient, per-sample gradients.

    Args:
        model: any module; wrappers (``torch.compile``, data parallel) are looked through.
        loss: (outputs, targets) -> a scalar, the mean over the samples.
        data: a pair (inputs, targets), or an iterable of such pairs that can be run through more
            than once (a DataLoader, a list). ``inputs`` is a tensor, a tuple of arguments, or a
            mapping of keyword arguments, whose tensors have samples on their first axis, as the
            tensor of targets has. Batches are moved to the device of the model's weights.

    Attributes:
        model: the module inside wrappers.
        loss: the loss.
        count: N, the number of samples.

    Raises:
        ValueError: if the data are none of these, or hold no samples.
    """

    def __init__(self, model: nn.Module, loss: Loss, data: Data) -> None:
        self.model = plain(model)
        self.loss = loss
        self._data = pairs_of(data)
        self._vectorised: bool | None = None
        some = next(self.model.parameters(), None)
        self._device = torch.device("cpu") if some is None else some.device
        self.count = sum(len(targets) for _, targets in self._checked())
        if self.count == 0:
            raise ValueError("data hold no samples")

    def batches(self) -> Iterator[tuple[Any, Tensor]]:
        """The pairs (inputs, targets), on the device of the model."""
        for inputs, targets in self._data:
            if len(targets):
                leaves = (x.to(self._device) for x in tensors_of(inputs))
                yield with_tensors(inputs, leaves), targets.to(self._device)

    def outputs(self, values: Mapping[str, Tensor], inputs: Any) -> Any:
        """f(inputs) with other values for some parameters; the model's buffers stay as they are."""
        buffers = {path: buffer.clone() for path, buffer in self.model.named_buffers()}
        return functional_call(self.model, (dict(values), buffers), *arguments_of(inputs))

    def values(self, paths: Sequence[str]) -> dict[str, Tensor]:
        """The parameters at these paths, detached.

        Raises:
            ValueError: if the model has no parameter at a path.
        """
        found = {}
        for path in paths:
            try:
                found[path] = tensor_at(self.model, path).detach()
            except AttributeError as error:
                raise ValueError(f"the model has no parameter {path!r}") from error
        return found

    def mean_gradient(self, paths: Sequence[str]) -> dict[str, Tensor]:
        """grad L = sum over batches of (n / N) times the gradient of the batch's loss.

        Args:
            paths: the parameters to differentiate by; each gradient has their shape and dtype.
        """
        total = {path: torch.zeros_like(value) for path, value in self.values(paths).items()}
        for inputs, targets in self.batches() if paths else ():
            share = len(targets) / self.count
            for path, gradient in self._gradient(paths, inputs, targets).items():
                total[path] += share * gradient
        require_finite(total.values())
        return total

    def per_sample(
        self, paths: Sequence[str], most: int | None = None
    ) -> Iterator[dict[str, Tensor]]:
        """g_n = grad L_n for all samples, some at a time: {path: [n, *shape of the parameter]}.

        Args:
            paths: the parameters to differentiate by.
            most: samples at a time; None: as many as have 2^24 entries of gradients together.

        Raises:
            ValueError: if a sample has no gradient of its own: the model mixes samples (batch
                normalisation in training), draws random numbers (dropout in training), or the loss
                is no mean over the samples.
        """
        if most is None:
            most = self.fitting(paths)
        for inputs, targets in self.parts(most):
            yield self.each(paths, inputs, targets)

    def fitting(self, paths: Sequence[str]) -> int:
        """How many samples have 2^24 entries of gradients together, at least 1."""
        entries = sum(value.numel() for value in self.values(paths).values())
        return max(1, ENTRIES // max(1, entries))

    def parts(self, most: int) -> Iterator[tuple[Any, Tensor]]:
        """The batches, in parts of at most so many samples.

        Raises:
            ValueError: if the loss of a part is not the mean over its samples.
        """
        _refuse(self.model)
        for inputs, targets in self.batches():
            for start in range(0, len(targets), most):
                part = slice(start, start + most)
                self._require_mean_loss(rows(inputs, part), targets[part])
                yield rows(inputs, part), targets[part]

    @torch.no_grad()
    def _require_mean_loss(self, inputs: Any, targets: Tensor) -> None:
        """Compare the loss of samples with those of a third and of the rest of them."""
        count, first = len(targets), len(targets) // 3
        cuts = [slice(0, count), slice(0, first), slice(first, count)] if first else []
        losses = [
            self.loss(self.outputs({}, rows(inputs, cut)), targets[cut]).double() for cut in cuts
        ]
        if not losses:
            return
        whole, one, other = (float(found) for found in losses)
        mean = (first * one + (count - first) * other) / count
        if abs(whole - mean) > FLOAT32**0.5 * (abs(one) + abs(other)):
            raise ValueError(
                f"the loss of {count} samples is {whole:.4g}, but the mean over two parts of them "
                f"{mean:.4g}: the model mixes samples or draws random numbers, so call "
                f"model.eval(), or the loss is no mean over the samples (a sum, weights of "
                f"classes, targets that are left out)"
            )

    def each(self, paths: Sequence[str], inputs: Any, targets: Tensor) -> dict[str, Tensor]:
        """g_n of the samples of one batch; arguments and errors as of ``per_sample``."""
        with plain_attention():
            each = self._of_each(paths, inputs, targets, self.can_vectorise(paths))
            require_finite(each.values())
            self._require_mean(each, self._gradient(paths, inputs, targets), len(targets))
        return each

    def _gradient(self, paths: Sequence[str], inputs: Any, targets: Tensor) -> dict[str, Tensor]:
        """The gradient of the loss of one batch."""
        values = {path: value.requires_grad_() for path, value in self.values(paths).items()}
        with torch.enable_grad():
            loss = self.loss(self.outputs(values, inputs), targets)
            found = torch.autograd.grad(
                loss, list(values.values()), allow_unused=True, materialize_grads=True
            )
        return dict(zip(values, found, strict=True))

    def _of_each(
        self, paths: Sequence[str], inputs: Any, targets: Tensor, vectorised: bool
    ) -> dict[str, Tensor]:
        if not vectorised:
            singles = [
                self._gradient(paths, rows(inputs, slice(n, n + 1)), targets[n : n + 1])
                for n in range(len(targets))
            ]
            return {path: torch.stack([one[path] for one in singles]) for path in paths}

        def of_one(values: dict[str, Tensor], leaves: list[Tensor], target: Tensor) -> Tensor:
            one = with_tensors(inputs, (leaf[None] for leaf in leaves))
            return self.loss(self.outputs(values, one), target[None])

        each = vmap(grad(of_one), in_dims=(None, 0, 0))
        found: dict[str, Tensor] = each(self.values(paths), list(tensors_of(inputs)), targets)
        return {path: gradient.detach() for path, gradient in found.items()}

    def can_vectorise(self, paths: Sequence[str]) -> bool:
        """Whether vmap runs the model; raises ``ValueError`` if samples have no gradients."""
        if self._vectorised is None:
            _refuse(self.model)
            # A gradient may be nothing but rounding, as that of a key's bias in attention: what
            # differs is compared with the gradient by all that is trained.
            trained = [p for p, value in self.model.named_parameters() if value.requires_grad]
            self._vectorised = self._try(list(dict.fromkeys([*trained, *paths])))
        return self._vectorised

    def _try(self, paths: Sequence[str]) -> bool:
        inputs, targets = next(pair for pair in self.batches() if len(pair[1]))
        inputs, targets = rows(inputs, slice(0, CHECKED)), targets[:CHECKED]
        vectorised = True
        try:
            each = self._of_each(paths, inputs, targets, vectorised)
        except Exception:
            # Operations that vmap does not know raise errors of many kinds. If the model itself
            # is at fault, it raises again here.
            vectorised = False
            each = self._of_each(paths, inputs, targets, vectorised)
        whole = self._gradient(paths, inputs, targets)
        self._require_mean(each, whole, len(targets))
        self._require_free_of_weights(whole, inputs, targets)
        return vectorised

    def _require_mean(
        self, each: Mapping[str, Tensor], whole: Mapping[str, Tensor], count: int
    ) -> None:
        """Raise ``ValueError`` if the mean of gradients is not the gradient of the mean loss."""
        difference, size, eps = 0.0, 0.0, FLOAT32
        for path, gradients in each.items():
            wide = gradients.double()
            difference += float((wide.mean(0) - whole[path]).square().sum())
            size += float(wide.square().sum()) / count
            eps = max(eps, torch.finfo(gradients.dtype).eps)
        if difference > eps * size:
            relative = (difference / max(difference, size)) ** 0.5
            raise ValueError(
                f"the mean of the samples' gradients is not the gradient of the mean loss, but off "
                f"by {relative:.1e} of it: the model mixes samples or draws random numbers, so "
                f"call model.eval(), or the loss is no mean over the samples"
            )

    def _require_free_of_weights(
        self, whole: Mapping[str, Tensor], inputs: Any, targets: Tensor
    ) -> None:
        """Raise ``ValueError`` if the loss reads the weights itself, as a penalty does."""
        parameters = ((path, tensor_at(self.model, path)) for path in whole)
        own = {path: value for path, value in parameters if value.requires_grad}
        if not own:
            return
        with torch.enable_grad():
            loss = self.loss(self.outputs(own, inputs), targets)
            found = torch.autograd.grad(
                loss, list(own.values()), allow_unused=True, materialize_grads=True
            )
        gradients = zip(own, found, strict=True)
        off = sum(float((g - whole[path]).double().square().sum()) for path, g in gradients)
        if off > FLOAT32 * sum(float(whole[path].double().square().sum()) for path in own):
            raise ValueError(
                "the loss reads the model's weights, as a penalty does, so that no symmetry leaves "
                "it: take it of outputs and targets alone"
            )

    def _checked(self) -> Iterator[tuple[Any, Tensor]]:
        for inputs, targets in self._data:
            leaves = list(tensors_of(inputs))
            if not leaves:
                raise ValueError(f"inputs must hold tensors, found {type(inputs).__name__}")
            for leaf in leaves:
                if leaf.dim() == 0 or len(leaf) != len(targets):
                    raise ValueError(
                        f"inputs must have {len(targets)} samples on their first axis, as targets "
                        f"have, found shape {list(leaf.shape)}"
                    )
            yield inputs, targets


def require_finite(tensors: Iterable[Tensor]) -> None:
    """Raise ``ValueError`` if gradients are not finite."""
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise ValueError(
            "gradients are not finite: look for NaN or infinite numbers in data, weights and loss"
        )


def _refuse(model: nn.Module) -> None:
    """Raise ``ValueError`` for modules of which it is known that they mix samples, or draw."""
    for path, module in model.named_modules():
        uses_batch = isinstance(module, _BatchNorm) and (
            module.training or module.running_mean is None
        )
        if uses_batch:
            advice = "call model.eval()" if module.running_mean is not None else "replace it"
            raise ValueError(
                f"{path!r} normalises over the samples of a batch, so that a single sample has no "
                f"gradient: {advice}"
            )
        if isinstance(module, _DropoutNd) and module.training and module.p > 0:
            raise ValueError(
                f"{path!r} is dropout in training, so that a sample's gradient is random: "
                f"call model.eval()"
            )


@contextmanager
def plain_attention() -> Iterator[None]:
    """Attention by operations that vmap knows, none of them fused."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
