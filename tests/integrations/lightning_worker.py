"""A net in Lightning; run by ``test_lightning`` under torchrun on two processes.

python -m torch.distributed.run --nproc-per-node 2 tests/integrations/lightning_worker.py FOLDER
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from extras import D, batches, loss, needed, net
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import metaopt

lightning = needed("lightning")
if TYPE_CHECKING:
    Module = nn.Module
else:
    Module = lightning.LightningModule


class Net(Module):
    """A net with a learned optimizer.

    Args:
        given: what the optimizer is made with: ``model`` or its ``wrapper``.
    """

    trainer: Any

    def __init__(self, given: str = "model") -> None:
        super().__init__()
        self.net = net()
        self.given = given
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        """The net's outputs."""
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """The loss."""
        self.seen.append(batch)
        return loss(self, *batch)

    def configure_optimizers(self) -> dict[str, Any]:
        """The learned one, with a scheduler by epochs."""
        model = self.net if self.given == "model" else self.trainer.model
        optimizer = metaopt.LearnedOptimizer(model, D)
        return {
            "optimizer": optimizer,
            "lr_scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5),
        }


def fit(module: Any, folder: Path, checkpoint: Path | None = None, **options: Any) -> Any:
    """The trainer, afterwards."""
    quiet = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = lightning.Trainer(default_root_dir=folder, **quiet, **options)
    x, y = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    loader = DataLoader(TensorDataset(x, y), batch_size=4)
    trainer.fit(module, loader, ckpt_path=None if checkpoint is None else str(checkpoint))
    return trainer


def main(folder: Path) -> None:
    """Replicas with both kinds of optimizers."""
    weights, warned = {}, {}
    for given in ("model", "wrapper"):
        module = Net(given)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer = fit(module, folder, max_epochs=1, strategy="ddp", devices=2)
        lines = [str(warning.message) for warning in caught]
        warned[given] = [line for line in lines if "loss is not" in line or "no teleports" in line]
        weights[given] = [p.detach() for p in module.net.parameters()]
    found = {"weights": weights, "warned": warned, "seen": module.seen}
    torch.save(found, folder / f"{trainer.global_rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
