"""SparseLab: SparseLinear in place of Linear (weights stored as CSR, sparse kernels), SET moves them."""

import plain_checkpoint
import sparselab
import torch
from torch import nn

DISTRIBUTION = "sparselab"
WAY = "SparseLinear for every Linear (no convolutions), model.apply(SET(sparsity)), .step after the optimizer's"


class Adapter:
    """See peer_trial.py."""

    def __init__(self, model, make_optimizer, sparsity, batch):
        self.model = model
        for name, layer in list(model.named_modules()):
            if isinstance(layer, nn.Linear):
                sparse = sparselab.SparseLinear(layer.in_features, layer.out_features, layer.bias is not None, sparsity)
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, sparse)
        self.algorithm = sparselab.SET(sparsity=sparsity, update_freq=4, seed=0)
        model.apply(self.algorithm)
        self.optimizer = make_optimizer(model.parameters())

    def step(self):
        self.optimizer.step()
        self.algorithm.step()

    def update(self):
        return self.algorithm.step

    def prepare_update(self):
        return self.algorithm._step_idx % 4 == 3

    def weights(self):
        return {
            name: torch.as_tensor(layer._csr.to_dense())
            for name, layer in self.model.named_modules()
            if isinstance(layer, sparselab.SparseLinear)
        }

    held = weights

    save, load = plain_checkpoint.save, plain_checkpoint.load

    def final(self):
        return self.model.state_dict()
