"""Precision of the products of the LSTMs' weights: W x, W^T dz and dz x^T.

    Full      in the dtype of the rule
    TF32      float32 with factors of 10 mantissa bits, on CUDA devices that have it
    BFloat16  factors of 7 mantissa bits, their products summed in float32

Where a device has no instructions for the last one, torch's bfloat16 products are hundreds of times
slower than those in float32: there the rounded factors are multiplied in float32. ``note`` says
where a choice is not what makes a run faster.

All else, the element-wise part, the sums over a window, the optimizee and its teleports, keeps the
dtype of the rule. The last two leave float64 alone.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


class Precision:
    """Products of a matrix [a, b], or a batch of them [n, a, b], with arrays of as many axes."""

    def operand(self, x: Tensor) -> Tensor:
        """x as a factor; products take any tensor, but keep what they are given as it is here."""
        return x

    def dtype(self, x: Tensor) -> torch.dtype:
        """The dtype of ``operand(x)``."""
        return x.dtype

    def plus(self, z: Tensor, W: Tensor, x: Tensor, out: Tensor) -> Tensor:
        """out = z + W x."""
        if x.dim() == 3:
            return torch.baddbmm(z, W, x, out=out)
        return torch.addmm(z, W, x, out=out)

    def times(self, W: Tensor, x: Tensor, out: Tensor) -> Tensor:
        """out = W x."""
        return torch.matmul(W, x, out=out)

    def outer(self, dz: Tensor, x: Tensor) -> Tensor:
        """dz x^T, a new tensor."""
        return torch.matmul(dz, x.mT)

    def add_outer_(self, total: Tensor, dz: Tensor, x: Tensor) -> Tensor:
        """total += dz x^T."""
        return self.plus(total, dz, x.mT, out=total)


class Full(Precision):
    """In the dtype of the rule."""


class TF32(Precision):
    """float32 products with factors rounded to TF32 on CUDA devices; elsewhere as ``Full``."""

    def plus(self, z: Tensor, W: Tensor, x: Tensor, out: Tensor) -> Tensor:
        """out = z + W x."""
        before = torch.get_float32_matmul_precision()
        _allow("high", x)
        super().plus(z, W, x, out)
        _allow(before, x)
        return out

    def times(self, W: Tensor, x: Tensor, out: Tensor) -> Tensor:
        """out = W x."""
        before = torch.get_float32_matmul_precision()
        _allow("high", x)
        super().times(W, x, out)
        _allow(before, x)
        return out

    def outer(self, dz: Tensor, x: Tensor) -> Tensor:
        """dz x^T, a new tensor."""
        out = dz.new_empty(*dz.shape[:-1], x.shape[-2])
        return self.times(dz, x.mT, out)


def _allow(precision: str, x: Tensor) -> None:
    # On a CPU the same setting would choose other kernels.
    if x.is_cuda:
        torch.set_float32_matmul_precision(precision)


class BFloat16(Precision):
    """float32 factors rounded to bfloat16."""

    def operand(self, x: Tensor) -> Tensor:
        """x rounded."""
        return x.to(self.dtype(x))

    def dtype(self, x: Tensor) -> torch.dtype:
        """bfloat16 for float32, else that of x."""
        return torch.bfloat16 if x.dtype == torch.float32 else x.dtype

    def plus(self, z: Tensor, W: Tensor, x: Tensor, out: Tensor) -> Tensor:
        """out = z + W x."""
        return torch.add(z, self._product(W, x), out=out)

    def times(self, W: Tensor, x: Tensor, out: Tensor) -> Tensor:
        """out = W x."""
        return out.copy_(self._product(W, x))

    def outer(self, dz: Tensor, x: Tensor) -> Tensor:
        """dz x^T, a new tensor in float32."""
        product = self._product(dz, x.mT)
        return product.float() if product.dtype == torch.bfloat16 else product

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = self.operand(a), self.operand(b)
        if a.dtype == torch.bfloat16 and not multiplies_bfloat16(a.device):
            a, b = a.float(), b.float()
        return torch.matmul(a, b)


@cache
def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether torch has fast products of bfloat16 there: what it asks itself before them."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        onednn = torch.backends.mkldnn.is_available()
        return onednn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return True


@cache
def multiplies_tf32(device: torch.device) -> bool:
    """Whether there are TF32 products."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def note(precision: str, dtype: torch.dtype, device: torch.device) -> str | None:
    """One line for the user where a precision of products is not the one that was asked for.

    Args:
        precision: field ``precision`` of a configuration.
        dtype: the dtype of the rules.
        device: the device that they compute on.
    """
    if precision == "full":
        return None
    if dtype != torch.float32:
        name = str(dtype).removeprefix("torch.")
        return f"precision: {precision}: of no effect on {name}, which keeps its own precision"
    if precision == "tf32" and not multiplies_tf32(device):
        return f"precision: tf32: {device} has no TF32: products are in float32, as with full"
    if precision == "bfloat16" and not multiplies_bfloat16(device):
        return (
            f"precision: bfloat16: {device} has no bfloat16 instructions: factors are rounded to "
            f"bfloat16 and multiplied in float32, no faster than with full"
        )
    return None
