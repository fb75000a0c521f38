"""Fine-tuning layer by layer: which parts of a network learn, from when on, and how fast."""

from dataclasses import dataclass
from typing import Any

from torch import nn


def stages_of(classifier: nn.Module, head_name: str) -> list[nn.Module]:
    """Split a network into its stages, input first and the head alone at the end; each holds some of the weights."""
    head = classifier.get_submodule(head_name)
    stages = [part for part in _unpack(classifier, head) if any(True for _ in part.parameters())]
    return [*(part for part in stages if part is not head), head]


def _unpack(module: nn.Module, head: nn.Module) -> list[nn.Module]:
    """Open wrappers, sequences, and whatever holds the head, until stages are left."""
    children = [child for child in module.children() if any(True for _ in child.parameters())]
    holds_head = module is not head and any(inner is head for inner in module.modules())
    if holds_head or (isinstance(module, nn.Sequential) and len(children) > 1):
        return [part for child in children for part in (_unpack(child, head) if _opens(child, head) else [child])]
    return [module]


def _opens(child: nn.Module, head: nn.Module) -> bool:
    return any(inner is head for inner in child.modules())


@dataclass(frozen=True)
class Layers:
    """How the stages of a trained network learn.

    Parameters
    ----------
    stages
        Input first, head last; see `stages_of`.
    backbone_rate
        Learning rate of the first stage as a share of the head's; those between lie on a geometric line (Howard and
        Ruder 2018, discriminative fine-tuning). 1: all alike.
    frozen_epochs
        Epochs in which the head alone learns.
    gradual
        After those, one more stage each epoch, from the head down, in place of all at once (the same paper).
    """

    stages: list[nn.Module]
    backbone_rate: float = 1.0
    frozen_epochs: int = 0
    gradual: bool = False

    def groups(self) -> list[dict[str, Any]]:
        """Give the optimiser's parameter groups, each with its share of the learning rate."""
        last = max(len(self.stages) - 1, 1)
        return [
            {"params": list(stage.parameters()), "share": self.backbone_rate ** (1 - k / last)}
            for k, stage in enumerate(self.stages)
        ]

    def frozen(self, epoch: int) -> list[nn.Module]:
        """Give the stages that do not learn in an epoch, counted from 0."""
        if epoch < self.frozen_epochs:
            return self.stages[:-1]
        learning = 2 + epoch - self.frozen_epochs if self.gradual else len(self.stages)
        return self.stages[: max(0, len(self.stages) - learning)]

    def hold(self, epoch: int) -> None:
        """Freeze the stages that do not learn in an epoch, their batch norm included, and thaw the others."""
        still = self.frozen(epoch)
        for stage in self.stages:
            learns = not any(stage is each for each in still)
            for parameter in stage.parameters():
                parameter.requires_grad_(learns)
            if not learns:
                stage.eval()
