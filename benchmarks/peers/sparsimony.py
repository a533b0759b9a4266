"""sparsimony: RigL over parametrizations, `sparsifier.step()` after the optimizer's, squash_mask at the end."""

import torch
from networks import prunable_layers
from sparsimony.distributions.base import UniformDistribution
from sparsimony.dst.rigl import RigL
from sparsimony.schedulers.base import CosineDecayScheduler

DISTRIBUTION = "sparsimony"
WAY = "RigL(CosineDecayScheduler, UniformDistribution).prepare, .step after the optimizer's, .squash_mask at the end"


class Adapter:
    """See peer_trial.py."""

    def __init__(self, model, make_optimizer, sparsity, batch):
        self.model = model
        self.optimizer = make_optimizer(model.parameters())
        schedule = CosineDecayScheduler(0.3, 1_000_000, 4)
        self.sparsifier = RigL(schedule, UniformDistribution(), self.optimizer, sparsity, init_method=None)
        names = list(prunable_layers(model))
        self.sparsifier.prepare(model, [{"tensor_fqn": f"{name}.weight"} for name in names])
        self.layers = {name: model.get_submodule(name) for name in names}

    def step(self):
        self.optimizer.step()
        self.sparsifier.step()

    def update(self):
        return self.sparsifier.step

    def prepare_update(self):
        return self.sparsifier._step_count % 4 == 3

    def weights(self):
        with torch.no_grad():
            return {name: layer.weight.detach() for name, layer in self.layers.items()}

    def held(self):
        return {name: layer.parametrizations.weight.original.detach() for name, layer in self.layers.items()}

    def save(self):
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sparsifier": self.sparsifier.state_dict(),
        }

    def load(self, state):
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.sparsifier.load_state_dict(state["sparsifier"])

    def final(self):
        self.sparsifier.squash_mask()
        return self.model.state_dict()
