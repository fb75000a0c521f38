"""Fine-tuning layer by layer: which parts of a network learn, from when on, and how fast."""

from dataclasses import dataclass, field
from typing import Any

from torch import nn


def stages_of(classifier: nn.Module, head_name: str) -> list[nn.Module]:
    """Split a network into its stages, input first and the head alone at the end; each holds some of the weights."""
    head = classifier.get_submodule(head_name)
    return [*(part for part in _unpack(classifier, head) if part is not head), head]


def _unpack(module: nn.Module, head: nn.Module) -> list[nn.Module]:
    """Open sequences, whatever holds the head, and whatever holds a long sequence, such as a transformer's encoder."""
    children = [child for child in module.children() if next(child.parameters(), None) is not None]
    holds_head = module is not head and any(inner is head for inner in module.modules())
    if holds_head or any(isinstance(child, nn.Sequential) and len(child) >= 4 for child in children):
        return [part for child in children for part in _unpack(child, head)]
    return children if isinstance(module, nn.Sequential) else [module]


@dataclass(frozen=True)
class Layers:
    """How the stages of a trained network learn; see `layers_of`.

    Parameters
    ----------
    stages
        Input first, head last; see `stages_of`.
    loose
        Parameters of no stage, such as a transformer's position table; they go with the first.
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
    loose: list[nn.Parameter] = field(default_factory=list)

    def _parameters(self, k: int) -> list[nn.Parameter]:
        return [*(self.loose if k == 0 else []), *self.stages[k].parameters()]

    def groups(self) -> list[dict[str, Any]]:
        """Give the optimiser's parameter groups, each with its share of the learning rate."""
        last = max(len(self.stages) - 1, 1)
        return [
            {"params": self._parameters(k), "share": self.backbone_rate ** (1 - k / last)}
            for k in range(len(self.stages))
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
        for k, stage in enumerate(self.stages):
            learns = k >= len(still)
            for parameter in self._parameters(k):
                parameter.requires_grad_(learns)
            if not learns:
                stage.eval()


def layers_of(
    classifier: nn.Module, head_name: str, *, backbone_rate: float, frozen_epochs: int, gradual: bool
) -> Layers:
    """Split a classifier into stages, so that each of its weights is in one of them; see `Layers`."""
    stages = stages_of(classifier, head_name)
    inside = {id(parameter) for stage in stages for parameter in stage.parameters()}
    loose = [parameter for parameter in classifier.parameters() if id(parameter) not in inside]
    return Layers(stages, backbone_rate, frozen_epochs, gradual, loose)
