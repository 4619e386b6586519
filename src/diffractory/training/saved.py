"""Trained networks in their folders."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from diffractory.store import InputError

Network = TypeVar("Network", bound=nn.Module)


def load_trained(
    model: Path, build: Callable[[dict[str, Any]], Network]
) -> tuple[Network, dict[str, Any]]:
    """Return the trained network of a folder, and its hparams.json, which it is built from.

    Raises
    ------
    InputError
        If the folder does not hold one.
    """
    try:
        hparams = json.loads((model / "hparams.json").read_text(encoding="utf-8"))
        network = build(hparams)
        network.load_state_dict(load_file(model / "model.safetensors"))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{model} does not hold a trained network: {error!r}") from error
    return network.eval(), hparams
