"""Lightning's ModelPruning callback, its own methods called without a Trainer, whose time is not the callback's."""

from lightning.pytorch.callbacks import ModelPruning
from networks import prunable_layers

DISTRIBUTION = "lightning"
WAY = "ModelPruning('l1_unstructured', amount, use_global_unstructured=True), called as the Trainer calls it"


class Adapter:
    """See peer_trial.py."""

    def __init__(self, model, make_optimizer, sparsity, batch):
        self.model, self.sparsity = model, sparsity
        self.layers = prunable_layers(model)
        chosen = [(layer, "weight") for layer in self.layers.values()]
        self.callback = ModelPruning("l1_unstructured", chosen, amount=sparsity, use_global_unstructured=True)
        self.optimizer = make_optimizer(model.parameters())
        self.callback.setup(None, model, "fit")

    def step(self):
        self.optimizer.step()

    def update(self):
        return lambda: self.callback.apply_pruning(self.sparsity)

    def weights(self):
        if not hasattr(next(iter(self.layers.values())), "weight_orig"):
            return self.held()
        return {name: (layer.weight_orig * layer.weight_mask).detach() for name, layer in self.layers.items()}

    def held(self):
        return {name: getattr(layer, "weight_orig", layer.weight).detach() for name, layer in self.layers.items()}

    def save(self):
        # What on_save_checkpoint stores with its default make_pruning_permanent=True: weights times masks.
        state = self.callback._make_pruning_permanent_on_state_dict(self.model)
        return {"model": state, "optimizer": self.optimizer.state_dict(), "callback": self.callback.state_dict()}

    def load(self, state):
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.callback.load_state_dict(state["callback"])

    def final(self):
        self.callback.make_pruning_permanent(self.model)
        return self.model.state_dict()
