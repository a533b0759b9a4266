"""NVIDIA Model Optimizer: mts.sparsify(model, "sparse_magnitude"), 2:4 only, mts.export at the end."""

import modelopt.torch.opt as mto
import modelopt.torch.sparsity as mts

DISTRIBUTION = "nvidia-modelopt"
WAY = "mts.sparsify(model, 'sparse_magnitude') (2:4: half of the weights, whatever is asked), mts.export at the end"
SPARSITY = 0.5
# Sizes must be multiples of 8 outputs and 16 inputs: it skips every layer of the MLP, with a warning.
CHECKED_ON = "transformer-small"


class Adapter:
    """See peer_trial.py."""

    def __init__(self, model, make_optimizer, sparsity, batch):
        self.model = mts.sparsify(model, mode="sparse_magnitude")
        if not self._layers():
            raise ValueError("refused: it skips every layer, sizes must be multiples of 8 outputs and 16 inputs")
        self.optimizer = make_optimizer(self.model.parameters())

    def step(self):
        self.optimizer.step()

    def _layers(self):
        # A layer that it skips has no mask, or one that keeps everything.
        masked = ((name, layer, getattr(layer, "_weight_mask", None)) for name, layer in self.model.named_modules())
        return {name: layer for name, layer, mask in masked if mask is not None and not mask.all()}

    def weights(self):
        return {name: layer.weight.detach() for name, layer in self._layers().items()}

    def held(self):
        return {name: dict(layer.named_parameters(recurse=False))["weight"].detach() for name, layer in self._layers().items()}

    def save(self):
        return {
            "modelopt": mto.modelopt_state(self.model),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load(self, state):
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])

    def final(self):
        return mts.export(self.model).state_dict()
