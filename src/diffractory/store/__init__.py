"""What stages hand over (tables, pattern store, provenance) and the small tools of every stage."""

from diffractory.errors import InputError
from diffractory.store.columns import CRYSTAL_SYSTEMS, LATTICE, MAX_ATOMIC_NUMBER
from diffractory.store.files import (
    atomic_file,
    atomic_folder,
    claimed,
    write_parquet,
    write_text,
)
from diffractory.store.patterns import (
    Patterns,
    SpotReader,
    read_material_ids,
    read_patterns,
    read_selected,
    write_patterns,
)
from diffractory.store.processes import keep_socket_paths_short, one_thread, worker_pool
from diffractory.store.progress import track
from diffractory.store.provenance import recorded
from diffractory.store.seeding import generator

__all__ = [
    "CRYSTAL_SYSTEMS",
    "LATTICE",
    "MAX_ATOMIC_NUMBER",
    "InputError",
    "Patterns",
    "SpotReader",
    "atomic_file",
    "atomic_folder",
    "claimed",
    "generator",
    "keep_socket_paths_short",
    "one_thread",
    "read_material_ids",
    "read_patterns",
    "read_selected",
    "recorded",
    "track",
    "worker_pool",
    "write_parquet",
    "write_patterns",
    "write_text",
]
