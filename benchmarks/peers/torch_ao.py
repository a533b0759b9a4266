"""torch.ao.pruning: WeightNormSparsifier on single weights; prepare, step, squash_mask as its documentation has it."""

from networks import prunable_layers
from torch.ao.pruning import WeightNormSparsifier

DISTRIBUTION = "torch"
WAY = "WeightNormSparsifier(sparse_block_shape=(1, 1)).prepare, .step after the optimizer's, .squash_mask at the end"


class Adapter:
    """See peer_trial.py."""

    def __init__(self, model, make_optimizer, sparsity, batch):
        self.model = model
        self.sparsifier = WeightNormSparsifier(sparsity_level=sparsity, sparse_block_shape=(1, 1), zeros_per_block=1)
        names = list(prunable_layers(model))
        self.sparsifier.prepare(model, [{"tensor_fqn": f"{name}.weight"} for name in names])
        self.layers = {name: model.get_submodule(name) for name in names}
        self.optimizer = make_optimizer(model.parameters())

    def step(self):
        self.optimizer.step()

    def update(self):
        return self.sparsifier.step

    def weights(self):
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
        # Masks are kept in the sparsifier's state, and out of the model's.
        self.model.load_state_dict(state["model"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.sparsifier.load_state_dict(state["sparsifier"])

    def final(self):
        self.sparsifier.squash_mask()
        return self.model.state_dict()
