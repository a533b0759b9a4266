"""Torch-Pruning: MagnitudePruner, which takes whole channels out of the network: smaller and faster, and not sparse."""

import torch_pruning
from networks import prunable_layers

DISTRIBUTION = "torch-pruning"
WAY = "MagnitudePruner(pruning_ratio=1 - sqrt(0.1)): channels are taken out; a tenth is left of weights between two pruned layers"


class Adapter:
    """See peer_trial.py."""

    def __init__(self, model, make_optimizer, sparsity, batch):
        self.model = model
        self.before = sum(layer.weight.numel() for layer in prunable_layers(model).values())
        last = list(prunable_layers(model).values())[-1]
        self.pruner = torch_pruning.pruner.MagnitudePruner(
            model,
            batch.inputs,
            importance=torch_pruning.importance.MagnitudeImportance(p=2),
            pruning_ratio=1 - (1 - sparsity) ** 0.5,
            ignored_layers=[last],
        )
        self.pruner.step()
        self.optimizer = make_optimizer(model.parameters())

    def step(self):
        self.optimizer.step()

    def removed(self):
        return 1 - sum(layer.weight.numel() for layer in prunable_layers(self.model).values()) / self.before

    def save(self):
        # Shapes have changed: the readme saves the whole model object.
        return {"model": self.model, "optimizer": self.optimizer.state_dict()}

    def load(self, state):
        self.model.load_state_dict(state["model"].state_dict())
        self.optimizer.load_state_dict(state["optimizer"])

    def final(self):
        return self.model
