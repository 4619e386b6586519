"""Random generators that depend on what is drawn for, never on when or where it is drawn."""

import hashlib

import numpy as np


def generator(seed: int, stage: str, item: str | int) -> np.random.Generator:
    """Return the generator of one item of one stage.

    Results then do not depend on the number of shards, workers or nodes.

    Parameters
    ----------
    seed
        Global seed of the configuration.
    stage
        Name of the purpose, such as ``"split"`` or ``"orientations"``.
    item
        ``material_id`` or sample index.
    """
    digest = hashlib.blake2b(f"{seed}\0{stage}\0{item}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))
