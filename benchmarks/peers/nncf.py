"""NNCF: nncf.prune with UNSTRUCTURED_MAGNITUDE_GLOBAL, nncf.strip at the end, as its pruning guide has it."""

import nncf
import nncf.torch
from nncf.torch.function_hook.pruning.magnitude.algo import get_pruned_modules, update_pruning_ratio

DISTRIBUTION = "nncf"
WAY = "nncf.prune(model, PruneMode.UNSTRUCTURED_MAGNITUDE_GLOBAL, ratio, examples_inputs), nncf.strip at the end"
MODE = nncf.PruneMode.UNSTRUCTURED_MAGNITUDE_GLOBAL


class Adapter:
    """See peer_trial.py."""

    def __init__(self, model, make_optimizer, sparsity, batch):
        self.sparsity, self.inputs = sparsity, batch.inputs
        self.model = nncf.prune(model, mode=MODE, ratio=sparsity, examples_inputs=batch.inputs)
        self.optimizer = make_optimizer(self.model.parameters())

    def step(self):
        self.optimizer.step()

    def update(self):
        return lambda: update_pruning_ratio(self.model, MODE, self.sparsity)

    def _parameters(self):
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        return {name: (parameters[name.replace(":", ".")], hook) for name, hook in get_pruned_modules(self.model).items()}

    def weights(self):
        return {name: (weight * hook.binary_mask).detach() for name, (weight, hook) in self._parameters().items()}

    def held(self):
        return {name: weight.detach() for name, (weight, _) in self._parameters().items()}

    def save(self):
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "config": nncf.torch.get_config(self.model),
        }

    def load(self, state):
        # A prepared model is given here; NNCF documents load_from_config for one that is not.
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])

    def final(self):
        return nncf.strip(self.model, do_copy=False, strip_format=nncf.StripFormat.IN_PLACE).state_dict()
