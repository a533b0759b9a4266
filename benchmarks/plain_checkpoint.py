"""The checkpoint of packages that document no other: the state of model and optimizer. Methods of adapters (peer_trial.py)."""

from __future__ import annotations

from typing import Any


def save(adapter: Any) -> dict[str, Any]:
    """What is saved in training."""
    return {"model": adapter.model.state_dict(), "optimizer": adapter.optimizer.state_dict()}


def load(adapter: Any, state: dict[str, Any]) -> None:
    """Go on from it."""
    adapter.model.load_state_dict(state["model"])
    adapter.optimizer.load_state_dict(state["optimizer"])
