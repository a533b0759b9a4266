"""The settings of a configuration as a person reads them: what varies within a method, and what all runs share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sparsebench.records.schema import canonical_json

__all__ = ["flatten", "shared_settings", "varying_settings"]

UNSET = "\N{EN DASH}"
_REPLICATE = ("seed", "parent.run_id")  # which of its replicates a run is, and its parent
_CALLED = {"parent.configuration": "parent"}


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A nested configuration as dotted names and short texts, in the order of the configuration, without its replicate.

    Example:
        >>> flatten({"method": "l0", "seed": 3, "parameters": {"penalty": 1.0, "shape": "linear"}})
        {'method': 'l0', 'parameters.penalty': '1', 'parameters.shape': 'linear'}
    """
    flat: dict[str, str] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if name in _REPLICATE:
            continue
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = _text(value)
    return flat


def varying_settings(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """The settings in which the configurations of one method differ.

    Args:
        configs: The configurations by their ids.

    Returns:
        For every id the varying settings, under the shortest names that stay unambiguous; a setting that a
        configuration lacks is an en dash.

    Example:
        >>> varying_settings({"a": {"parameters": {"begin": 0, "end": 9}}, "b": {"parameters": {"begin": 5, "end": 9}}})
        {'a': {'begin': '0'}, 'b': {'begin': '5'}}
    """
    flat = {name: flatten(config) for name, config in configs.items()}
    keys = _keys(flat.values())
    varying = [key for key in keys if len({settings.get(key) for settings in flat.values()}) > 1]
    short = _short_names(varying)
    return {name: {short[key]: settings.get(key, UNSET) for key in varying} for name, settings in flat.items()}


def shared_settings(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The settings that all configurations have in common, under their full dotted names.

    Example:
        >>> shared_settings({"a": {"recipe": {"steps": 100, "rate": 0.1}}, "b": {"recipe": {"steps": 100, "rate": 0.2}}})
        {'recipe.steps': '100'}
    """
    flat = [flatten(config) for config in configs.values()]
    return {key: flat[0][key] for key in _keys(flat) if len({settings.get(key) for settings in flat}) == 1}


def _keys(flat: Iterable[Mapping[str, str]]) -> list[str]:
    return list(dict.fromkeys(key for settings in flat for key in settings))


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.10g}"
    return canonical_json(value)


def _short_names(keys: list[str]) -> dict[str, str]:
    last = [_CALLED.get(key) or key.rpartition(".")[2] for key in keys]
    return {key: short if last.count(short) == 1 else key for key, short in zip(keys, last, strict=True)}
