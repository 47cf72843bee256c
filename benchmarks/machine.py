"""What the machine can do: float32 matmul rate and copy bandwidth, as torch reaches them."""

from __future__ import annotations

import platform
from dataclasses import dataclass

import torch

from benchmarks.timing import median_seconds

MATMUL_SIZE = 2048
COPY_BYTES = 2**28
REPEATS = 9


@dataclass(frozen=True)
class Machine:
    """One device."""

    device: str  # its name
    torch: str  # version
    threads: int  # that torch uses on the CPU
    matmul_flops: float  # float32 operations a second, a multiply-add counting as two
    copy_bytes: float  # bytes a second, read and written ones together

    def lines(self) -> str:
        """For people."""
        return (
            f"{self.device}, torch {self.torch}, {self.threads} threads: float32 matmul "
            f"{self.matmul_flops / 1e9:.0f} GFLOP/s ({MATMUL_SIZE} cubed), copy "
            f"{self.copy_bytes / 1e9:.1f} GB/s (read and written)"
        )


def matmul_flops(device: torch.device, size: int = MATMUL_SIZE) -> float:
    """Float32 operations a second of ``torch.mm`` on square matrices."""
    a, b = (torch.rand(size, size, device=device) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * size**3 / median_seconds(lambda: torch.mm(a, b, out=out), device, REPEATS)


def copy_bytes(device: torch.device, size: int = COPY_BYTES) -> float:
    """Bytes a second that ``copy_`` reads and writes."""
    source = torch.zeros(size // 4, device=device)
    target = torch.ones_like(source)
    return 2 * size / median_seconds(lambda: target.copy_(source), device, REPEATS)


def measure(device: torch.device) -> Machine:
    """The machine as it is now."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return Machine(
        name,
        torch.__version__,
        torch.get_num_threads(),
        matmul_flops(device),
        copy_bytes(device),
    )


def _processor() -> str:
    """The processor's name, from Linux where that is what runs."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2] for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0].strip() if names else platform.processor() or platform.machine()
