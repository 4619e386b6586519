"""From the bytes of a structure file to one ordered crystal, or the reason why not."""

import json
import math
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pymatgen.core.composition import Composition
from pymatgen.core.periodic_table import DummySpecies, Element
from pymatgen.core.structure import Structure
from pymatgen.io.cif import CifParser

from diffractory.store import MAX_ATOMIC_NUMBER

Reason = Literal[
    "unparsable",
    "not_finite",
    "disordered",
    "unsupported_element",
    "too_many_sites",
    "volume_out_of_range",
    "atoms_too_close",
    "symmetry_not_found",
    "duplicate_id",
    "not_two_dimensional",
    "no_vacuum",
    "duplicate",
]


class Rejected(Exception):  # noqa: N818
    """A structure is set aside; ``detail`` says why in one line."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = " ".join(detail.split())[:300]


class Cell(NamedTuple):
    """A crystal of N sites, in the form that spglib takes.

    Attributes
    ----------
    lattice
        Rows are the lattice vectors in angstrom, shape (3, 3).
    positions
        Fractional coordinates, shape (N, 3).
    numbers
        Atomic numbers, shape (N,).
    """

    lattice: NDArray[np.float64]
    positions: NDArray[np.float64]
    numbers: NDArray[np.intc]

    @property
    def volume(self) -> float:
        """Volume in cubic angstrom."""
        return float(abs(np.linalg.det(self.lattice)))


def read_cell(content: bytes, file_format: str) -> Cell:
    """Read one ordered crystal, right-handed, of elements with known scattering factors.

    Parameters
    ----------
    content
        The bytes of the structure file.
    file_format
        ``"cif"``, ``"poscar"``, ``"json"`` (dictionary form of pymatgen's ``Structure``), or a file
        extension known to ASE.

    Raises
    ------
    Rejected
        If the file cannot be read or holds anything else.
    """
    if not content.strip():
        raise Rejected("unparsable", "the file is empty")
    try:
        reader = READERS.get(file_format)
        cell = reader(content.decode("utf-8-sig")) if reader else _read_ase(content, file_format)
    except Rejected:
        raise
    except Exception as error:
        raise Rejected("unparsable", f"{type(error).__name__}: {error}") from error
    if not (np.isfinite(cell.lattice).all() and np.isfinite(cell.positions).all()):
        raise Rejected("not_finite", "lattice or coordinates hold NaN or infinity")
    # A left-handed basis is replaced by its inverse: the atoms stay where they are.
    sign = -1.0 if np.linalg.det(cell.lattice) < 0 else 1.0
    return Cell(sign * cell.lattice, sign * cell.positions, cell.numbers)


def _read_cif(text: str) -> Cell:
    parser: Any = CifParser.from_str(text)
    blocks = [b for b in parser.as_dict().values() if "_atom_site_fract_x" in b]
    if len(blocks) != 1:
        raise Rejected("unparsable", f"the file holds {len(blocks)} structures, not one")
    _check_items(blocks[0])
    # Whether occupancies are as they should be is for _from_pymatgen to say.
    try:
        structure = parser.parse_structures(primitive=False, check_occu=False, on_error="ignore")[0]
    except ValueError as error:
        raise Rejected(
            "unparsable", parser.warnings[-1] if parser.warnings else str(error)
        ) from None
    cell = _from_pymatgen(structure)
    _check_formula(blocks[0], cell.numbers)
    return cell


def _check_items(block: Mapping[str, Any]) -> None:
    """Refuse what pymatgen would stumble over, or read as another element by its first letter."""
    names = [f"_cell_{name}" for name in ("length_a", "length_b", "length_c")]
    names += [f"_cell_angle_{name}" for name in ("alpha", "beta", "gamma")]
    names += [f"_atom_site_fract_{axis}" for axis in "xyz"]
    values = np.concatenate([np.atleast_1d(block.get(name, [])) for name in names])
    for value in values:
        if re.fullmatch(r"[+-]?(nan|inf|infinity)", value, re.IGNORECASE):
            raise Rejected("not_finite", f"lattice or coordinates hold {value}")
    for symbol in block.get("_atom_site_type_symbol", []):
        letters = re.match("[A-Za-z]*", symbol)[0].title()  # type: ignore[index]
        if not Element.is_valid_symbol(letters):
            raise Rejected("unsupported_element", f"{symbol} is not an element")


def _check_formula(block: Mapping[str, Any], numbers: NDArray[np.intc]) -> None:
    """Refuse a cell that is not one formula sum, or as many as Z says, as in a truncated file."""
    try:
        composition = Composition(block["_chemical_formula_sum"])
    except (KeyError, ValueError, TypeError):
        return  # no formula, or free text
    if not composition:
        return
    formula: Counter[int] = Counter()
    amount: Any
    for element, amount in composition.items():
        formula[element.Z] += amount
    found = Counter(numbers.tolist())
    ratios = [found[z] / formula[z] if formula[z] else math.inf for z in formula | found]
    units = re.fullmatch(r"\d+", str(block.get("_cell_formula_units_Z", "")))
    whole = [1, int(units[0])] if units else range(1, len(numbers) + 1)
    if not any(np.allclose(ratios, n, rtol=0.01, atol=0) for n in whole):
        atoms = Composition({Element.from_Z(z).symbol: n for z, n in found.items()}).formula
        raise Rejected(
            "unparsable", f"atoms are {atoms}, but the formula says {composition.formula}"
        )


def _read_poscar(text: str) -> Cell:
    from pymatgen.io.vasp.inputs import Poscar  # imports more than the rest together

    poscar = Poscar.from_str(text, read_velocities=False)
    if not poscar.true_names:
        raise Rejected("unparsable", "the POSCAR does not name its elements")
    return _from_pymatgen(poscar.structure)


def _read_json(text: str) -> Cell:
    return _from_pymatgen(Structure.from_dict(json.loads(text)))


def _from_pymatgen(structure: Structure) -> Cell:
    if "implicit_hydrogens" in structure.site_properties:
        raise Rejected("unparsable", "hydrogen atoms are named, but not placed")
    numbers = []
    for site in structure:
        species = site.species
        amounts = list(species.values())
        if any(
            isinstance(element, DummySpecies) or element.Z > MAX_ATOMIC_NUMBER
            for element in species
        ):
            raise Rejected("unsupported_element", f"no scattering factors of {species.formula}")
        if sum(amounts) > 1.5 and all(amount == round(amount) for amount in amounts):
            raise Rejected("atoms_too_close", f"{species.formula} share one site")
        if len(amounts) != 1 or abs(amounts[0] - 1) > 1e-3:
            raise Rejected("disordered", f"a site holds {species.formula}")
        numbers.append(next(iter(species)).Z)
    return Cell(structure.lattice.matrix, structure.frac_coords, np.array(numbers, dtype=np.intc))


def _read_ase(content: bytes, extension: str) -> Cell:
    import ase.io  # takes a while, and few data sets need it

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"structure.{extension}"
        path.write_bytes(content)
        images: Any = ase.io.read(path, index=":")
    if len(images) != 1:
        raise Rejected("unparsable", f"the file holds {len(images)} structures, not one")
    atoms = images[0]
    if atoms.cell.rank < 3:
        raise Rejected("unparsable", "the file holds no cell of three lattice vectors")
    unknown = [z for z in atoms.numbers if not 1 <= z <= MAX_ATOMIC_NUMBER]
    if unknown:
        raise Rejected(
            "unsupported_element", f"no scattering factors of atomic number {unknown[0]}"
        )
    lattice = np.array(atoms.cell)
    positions = atoms.positions @ np.linalg.inv(lattice)
    return Cell(lattice, positions, atoms.numbers.astype(np.intc))


READERS: Mapping[str, Callable[[str], Cell]] = {
    "cif": _read_cif,
    "poscar": _read_poscar,
    "json": _read_json,
}
