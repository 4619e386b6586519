"""What every source of structures yields."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RetrievedStructure:
    """One structure as its source gave it, not yet parsed or checked.

    Attributes
    ----------
    material_id
        Identifier within the data set.
    source
        Name of the source.
    format
        How to read ``content``: ``"cif"``, ``"poscar"``, ``"json"`` (pymatgen's dictionary form of
        a ``Structure``), or the file extension by which ASE knows the format.
    content
        The bytes of the structure file.
    """

    material_id: str
    source: str
    format: str
    content: bytes
