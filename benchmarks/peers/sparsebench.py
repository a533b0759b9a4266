"""This package: magnitude pruning over all layers together, dropped weights lost."""

import tempfile
from pathlib import Path

import sparsebench
from sparsebench.storage import save_compressed

DISTRIBUTION = "sparsebench"
WAY = "magnitude_pruning(allocation='global', policy='gone'), attached to the optimizer"


class Adapter:
    """See peer_trial.py."""

    def __init__(self, model, make_optimizer, sparsity, batch):
        self.model = model
        # Its updates come with the optimizer's steps: every step is one until `update` has been called often enough.
        self.sparsifier = sparsebench.magnitude_pruning(
            sparsity=sparsity, begin=1, end=1_000_001, frequency=4, initial_sparsity=sparsity, allocation="global", policy="gone"
        )
        self.sparsifier.prepare(model)
        self.optimizer = make_optimizer(model.parameters())
        self.sparsifier.attach(self.optimizer)

    def step(self):
        self.optimizer.step()

    def update(self):
        self.optimizer.zero_grad()
        while self.sparsifier.step % 4 != 0:
            self.optimizer.step()
        return self.optimizer.step

    def weights(self):
        masks = self.sparsifier.masks()
        return {name: weight.detach() for name, weight in self.model.named_parameters() if name in masks}

    held = weights

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
        model = self.sparsifier.finalize()
        with tempfile.TemporaryDirectory() as folder:
            save_compressed(model, Path(folder) / "model.safetensors")
            return (Path(folder) / "model.safetensors").stat().st_size
