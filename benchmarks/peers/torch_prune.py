"""torch.nn.utils.prune, as in PyTorch's pruning tutorial: global_unstructured with L1Unstructured, later prune.remove."""

import plain_checkpoint
from networks import prunable_layers
from torch.nn.utils import prune

DISTRIBUTION = "torch"
WAY = "prune.global_unstructured(layers, L1Unstructured, amount), prune.remove at the end (tutorial)"


class Adapter:
    """See peer_trial.py."""

    def __init__(self, model, make_optimizer, sparsity, batch):
        self.model, self.sparsity = model, sparsity
        self.layers = prunable_layers(model)
        for layer in self.layers.values():
            prune.identity(layer, "weight")
        self.optimizer = make_optimizer(model.parameters())

    def step(self):
        self.optimizer.step()

    def update(self):
        return self._prune

    def _prune(self):
        # The amount is relative to what is still there (PEERS 19): told as a number of weights, so that it ends at the target.
        dropped = sum(int((layer.weight_mask == 0).sum()) for layer in self.layers.values())
        weights = sum(layer.weight_mask.numel() for layer in self.layers.values())
        more = int(self.sparsity * weights + 0.5) - dropped
        chosen = [(layer, "weight") for layer in self.layers.values()]
        prune.global_unstructured(chosen, pruning_method=prune.L1Unstructured, amount=max(more, 0))

    def weights(self):
        return {name: (layer.weight_orig * layer.weight_mask).detach() for name, layer in self.layers.items()}

    def held(self):
        return {name: layer.weight_orig.detach() for name, layer in self.layers.items()}

    save, load = plain_checkpoint.save, plain_checkpoint.load

    def final(self):
        for layer in self.layers.values():
            prune.remove(layer, "weight")
        return self.model.state_dict()
