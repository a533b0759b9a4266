"""rigl-torch: RigLScheduler, its readme's loop: `if pruner(): optimizer.step()`."""

from rigl_torch.RigL import RigLScheduler

DISTRIBUTION = "rigl-torch"
WAY = "RigLScheduler(dense_allocation, ignore_linear_layers=False); if pruner(): optimizer.step()"


class Adapter:
    """See peer_trial.py."""

    def __init__(self, model, make_optimizer, sparsity, batch):
        self.model = model
        self.optimizer = make_optimizer(model.parameters())
        self.pruner = RigLScheduler(
            model, self.optimizer, dense_allocation=1 - sparsity, T_end=1_000_000, delta=4, ignore_linear_layers=False
        )

    def step(self):
        if self.pruner():
            self.optimizer.step()

    def update(self):
        return self.pruner

    def prepare_update(self):
        return self.pruner.step % 4 == 3

    def weights(self):
        return {
            str(position): weight.detach()
            for position, (weight, mask) in enumerate(zip(self.pruner.W, self.pruner.backward_masks, strict=True))
            if mask is not None
        }

    held = weights

    def save(self):
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "pruner": self.pruner.state_dict(),
        }

    def load(self, state):
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.pruner.load_state_dict(state["pruner"])

    def final(self):
        return self.model.state_dict()
