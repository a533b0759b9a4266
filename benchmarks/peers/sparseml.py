"""SparseML: a recipe with GlobalMagnitudePruningModifier, the manager's optimizer in place of the plain one."""

import plain_checkpoint
from networks import prunable_layers
from sparseml.pytorch.optim import ScheduledModifierManager

DISTRIBUTION = "sparseml"
WAY = "ScheduledModifierManager.from_yaml(recipe with GlobalMagnitudePruningModifier).modify(model, optimizer)"
# A hundred steps are an epoch; masks move every fourth step.
RECIPE = """
modifiers:
  - !GlobalMagnitudePruningModifier
      init_sparsity: {sparsity}
      final_sparsity: {sparsity}
      start_epoch: 0.0
      end_epoch: 10000.0
      update_frequency: 0.04
      params: __ALL_PRUNABLE__
"""


class Adapter:
    """See peer_trial.py."""

    def __init__(self, model, make_optimizer, sparsity, batch):
        self.model, self.layers = model, prunable_layers(model)
        self.manager = ScheduledModifierManager.from_yaml(RECIPE.format(sparsity=sparsity))
        self.optimizer = self.manager.modify(model, make_optimizer(model.parameters()), steps_per_epoch=100)

    def step(self):
        self.optimizer.step()

    def weights(self):
        return {name: layer.weight.detach() for name, layer in self.layers.items()}

    held = weights

    save, load = plain_checkpoint.save, plain_checkpoint.load

    def final(self):
        self.manager.finalize(self.model)
        return self.model.state_dict()
