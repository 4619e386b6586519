import contextlib
import hashlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import ase.db
import numpy as np
import pandas as pd
import pytest
from ase.build import mx2
from pymatgen.core import Lattice, Structure

from diffractory.config import local_paths
from diffractory.store import InputError
from diffractory.structures.sources import (
    SOURCES,
    c2db,
    materials_project,
    optimade,
    retrieve_structures,
    structure_folder,
    structure_table,
    web,
)
from diffractory.structures.sources.base import RetrievedStructure

NACL = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5] * 3])
KEY = "Abcdefghij0123456789ABCDEFGHIJ01"

needs_data = pytest.mark.skipif(
    "DIFFRACTORY_DATA" not in os.environ, reason="DIFFRACTORY_DATA is not set"
)


@dataclass
class Server:
    """A server on loopback; ``respond`` gives status and body, or None to drop the connection.

    A third value is the length to promise: the connection is dropped before all of it has come.
    """

    respond: Callable[["Server", str, dict[str, str], Any], tuple[Any, ...] | None]
    requests: list[str] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
    url: str = ""


@contextlib.contextmanager
def serve(respond: Callable[..., tuple[Any, ...] | None]) -> Iterator[Server]:
    server = Server(respond)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.requests.append(self.path)
            parts = urlsplit(self.path)
            parameters = {name: values[0] for name, values in parse_qs(parts.query).items()}
            answer = respond(server, parts.path, parameters, self.headers)
            if answer is None:  # promise more than what comes
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b'{"data": [')
                return
            status, body, *promised = answer
            self.send_response(status)
            self.send_header("Content-Length", str(*promised or [len(body.encode())]))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *arguments):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


@pytest.fixture(autouse=True)
def _fast_retries(monkeypatch):
    monkeypatch.setattr(web, "RETRIES", 2)
    monkeypatch.setattr(web, "BACKOFF", 0.001)


def unreachable() -> str:
    """Return the address of a server that has just gone."""
    with serve(lambda *_: (200, "")) as server:
        return server.url


def structure(retrieved: RetrievedStructure) -> Structure:
    assert retrieved.format == "json"
    return Structure.from_dict(json.loads(retrieved.content))


# --- folder -----------------------------------------------------------------------------------


def folder(path: Path) -> list[RetrievedStructure]:
    return list(structure_folder.retrieve({"path": path.name}, path.parent, path / "unused"))


def test_folder_names_formats_and_order(tmp_path):
    contents = {
        "b.cif": b"data_b",
        "B.CIF": b"data_B",
        "a/POSCAR": b"a",
        "a/CONTCAR_1T": b"1T",
        "a/x.poscar": b"x",
        "a/x.vasp": b"y",
        "c.xyz": b"c",
        "XDATCAR": b"",
        "broken.cif": b"\xff\xfe\x00",
        ".hidden.cif": b"no",
        ".git/config": b"no",
    }
    for name, content in contents.items():
        file = tmp_path / "data" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    found = folder(tmp_path / "data")
    assert [(s.material_id, s.format, s.content) for s in found] == [
        ("B", "cif", b"data_B"),
        ("XDATCAR", "xdatcar", b""),
        ("a/CONTCAR_1T", "poscar", b"1T"),
        ("a/POSCAR", "poscar", b"a"),
        ("a/x.poscar", "poscar", b"x"),  # not unique without its suffix
        ("a/x.vasp", "poscar", b"y"),
        ("b", "cif", b"data_b"),
        ("broken", "cif", b"\xff\xfe\x00"),
        ("c", "xyz", b"c"),
    ]
    assert {s.source for s in found} == {"structure_folder"}


@pytest.mark.parametrize("make", [False, True], ids=["missing", "only hidden files"])
def test_folder_without_structures_is_named(tmp_path, make):
    data = tmp_path / "data"
    if make:
        data.mkdir()
        (data / ".DS_Store").write_text("")
    with pytest.raises(InputError, match=r"DIFFRACTORY_DATA") as error:
        folder(data)
    assert str(data) in str(error.value)


# --- table ------------------------------------------------------------------------------------


def table(path: Path, structure_column: str = "cif") -> list[RetrievedStructure]:
    settings = {"paths": [path.name], "structure_column": structure_column, "id_column": "id"}
    return list(structure_table.retrieve(settings, path.parent, path.parent / "unused"))


def test_csv_passes_everything_on(tmp_path):
    file = tmp_path / "t.csv"
    long = "x" * 200_000
    file.write_bytes(
        b"\xef\xbb\xbfid,cif,note\r\n"  # Excel writes a byte-order mark
        b'0012,"data_\nline 2",NA\r\n'
        b"NA,,\r\n"
        b'bad,"data_\xe9",\r\n'
        b"0012,again,\r\n"
        b",nameless,\r\n"
        b"short\r\n"
        b'too,many,cells,"here"\r\n' + f"long,{long},\n".encode()
    )
    assert [(s.material_id, s.content) for s in table(file)] == [
        ("0012", b"data_\nline 2"),
        ("NA", b""),
        ("bad", b"data_\xe9"),
        ("0012", b"again"),
        ("t_row_5", b"nameless"),
        ("short", b""),
        ("too", b"many"),
        ("long", long.encode()),
    ]


def test_parquet_gives_the_same_as_csv(tmp_path):
    rows = pd.DataFrame({"id": ["0012", None, "e"], "cif": ["data_é\n", "x", None], "other": 1.0})
    rows.to_parquet(tmp_path / "t.parquet")
    rows.to_csv(tmp_path / "t.csv", index=False)
    contents = [
        [(s.material_id, s.content) for s in table(tmp_path / name)]
        for name in ("t.parquet", "t.csv")
    ]
    assert contents[0] == contents[1]
    assert [s.material_id for s in table(tmp_path / "t.parquet")] == ["0012", "t_row_2", "e"]
    rows["id"] = [7, 8, 9]
    rows["cif"] = [b"\xe9", b"", b"z"]
    rows.to_parquet(tmp_path / "t.parquet")
    found = [(s.material_id, s.content) for s in table(tmp_path / "t.parquet")]
    assert found == [("7", b"\xe9"), ("8", b""), ("9", b"z")]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_missing_column_is_named_with_the_nearest(tmp_path, suffix):
    file = tmp_path / f"t.{suffix}"
    rows = pd.DataFrame({"id": ["1"], "CIF_text": ["x"], "energy": [0.5]})
    rows.to_csv(file, index=False) if suffix == "csv" else rows.to_parquet(file)
    with pytest.raises(InputError) as error:
        table(file)
    assert str(error.value) == (
        f"{file} has no column 'cif'; the nearest is 'CIF_text' of 'id', 'CIF_text', 'energy'"
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", None, "DIFFRACTORY_DATA"),
        ("t.csv", b"", "no column 'id'; the nearest is none, for it is empty"),
        ("t.parquet", b"PAR1 broken", "not a readable Parquet file"),
    ],
)
def test_unusable_table_is_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        table(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


@needs_data
def test_perov_5():
    settings = {
        "paths": ["perov_5/val.csv", "perov_5/test.csv"],
        "structure_column": "cif",
        "id_column": "material_id",
    }
    found = list(structure_table.retrieve(settings, Path(os.environ["DIFFRACTORY_DATA"]), Path()))
    assert len(found) == 3787 + 3785
    assert found[0].material_id == "18517"
    first = Structure.from_str(found[0].content.decode(), fmt="cif")
    assert first.composition.formula == "Cd1 Cu1 N3"


PUBLISHED = "id,cif\n" + "".join(f"m{n},data_{n}\n" for n in range(100))
SHA256 = hashlib.sha256(PUBLISHED.encode()).hexdigest()


def web_table(tmp_path: Path, url: str, digest: str | None = SHA256) -> list[RetrievedStructure]:
    """Read a local table and one from the web."""
    (tmp_path / "data").mkdir(exist_ok=True)
    (tmp_path / "data/val.csv").write_text("id,cif\nlocal,data_x\n")
    settings = {
        "source": "structure_table",
        "paths": ["val.csv", "set/train.csv"],
        "urls": [None, f"{url}/train.csv"],
        "sha256": [None, digest],
        "id_column": "id",
        "structure_column": "cif",
    }
    return list(SOURCES["structure_table"](settings, tmp_path / "data", tmp_path / "download"))


def ranged(server, path, parameters, headers):
    """Send the published table, or the rest of it; while broken, only 500 bytes at a time."""
    first = int(headers.get("Range", "bytes=0-")[6:-1])
    status = 206 if "Range" in headers and "no ranges" not in server.broken else 200
    body = PUBLISHED[first:] if status == 206 else PUBLISHED
    if not body:
        return 416, ""
    return (status, body[:500], len(body)) if "slow" in server.broken else (status, body)


def test_table_is_downloaded_where_it_is_not_there(tmp_path):
    with serve(ranged) as server:
        found = web_table(tmp_path, server.url)
        assert [s.material_id for s in found] == ["local", *(f"m{n}" for n in range(100))]
        assert {s.source for s in found[1:]} == {"structure_table:set/train.csv"}
        assert server.requests == ["/train.csv"]
        assert web_table(tmp_path, server.url) == found
        own = tmp_path / "data/set/train.csv"
        own.parent.mkdir()
        own.write_text(PUBLISHED)
        assert web_table(tmp_path, server.url) == found
        assert server.requests == ["/train.csv"]


@pytest.mark.parametrize("digest", [SHA256, SHA256.upper(), None])
def test_download_goes_on_where_it_stopped(tmp_path, monkeypatch, digest):
    monkeypatch.setattr(structure_table, "BLOCK", 100)
    with serve(ranged) as server:
        server.broken.add("slow")
        for _ in range(2):
            with pytest.raises(InputError, match=r"/train.csv could not be downloaded .* go on"):
                web_table(tmp_path, server.url, digest)
        (partial,) = (tmp_path / "download/set").iterdir()
        assert partial.read_text() == PUBLISHED[:999]
        server.broken.clear()
        web_table(tmp_path, server.url, digest)
        assert (tmp_path / "download/set/train.csv").read_text() == PUBLISHED
        assert not partial.exists()


def test_download_killed_before_its_last_step_is_whole(tmp_path):
    partial = tmp_path / "download/set/.train.csv.partial"
    partial.parent.mkdir(parents=True)
    partial.write_text(PUBLISHED)
    with serve(ranged) as server:
        web_table(tmp_path, server.url)
    assert (tmp_path / "download/set/train.csv").read_text() == PUBLISHED


def test_download_starts_again_where_the_server_sends_no_part_or_has_less(tmp_path):
    partial = tmp_path / "download/set/.train.csv.partial"
    partial.parent.mkdir(parents=True)
    with serve(ranged) as server:
        partial.write_text(PUBLISHED + "more")
        with pytest.raises(InputError, match="shorter than it was: run again"):
            web_table(tmp_path, server.url)
        server.broken.add("no ranges")
        partial.write_text("older,")
        web_table(tmp_path, server.url)
    assert (tmp_path / "download/set/train.csv").read_text() == PUBLISHED


def test_wrong_checksum_is_named_for_downloads_and_own_files(tmp_path):
    with serve(ranged) as server:
        for folder in ("download", "data"):
            file = tmp_path / folder / "set/train.csv"
            with pytest.raises(
                InputError, match=f"its SHA-256 is {SHA256}.* correct sha256"
            ) as error:
                web_table(tmp_path, server.url, "0" * 64)
            assert str(error.value).startswith(f"{file} is not the file")
            own = tmp_path / "data/set/train.csv"
            own.parent.mkdir(exist_ok=True)
            own.write_text(PUBLISHED)


def test_table_without_network_says_what_to_do(tmp_path):
    url = unreachable()
    with pytest.raises(InputError, match=r"where there is a network.* or put the file") as error:
        web_table(tmp_path, url)
    assert f"{url}/train.csv" in str(error.value)
    with (
        serve(lambda *_: (404, "")) as server,
        pytest.raises(InputError, match=r"answered 404 .*correct urls"),
    ):
        web_table(tmp_path, server.url)


def test_urls_and_checksums_go_with_paths(tmp_path):
    settings = {"paths": ["a.csv", "b.csv"], "id_column": "id", "structure_column": "cif"}
    for key in ("urls", "sha256"):
        with pytest.raises(InputError, match=f"{key} of a data set has 1 entries and paths 2"):
            list(structure_table.retrieve({**settings, key: [None]}, tmp_path, tmp_path))
    assert local_paths(settings) == ["a.csv", "b.csv"]
    assert local_paths({**settings, "urls": [None, "http://b"]}) == ["a.csv"]


# --- C2DB file --------------------------------------------------------------------------------


def c2db_file(path: Path) -> list[RetrievedStructure]:
    return list(c2db.retrieve({"path": path.name}, path.parent, path.parent / "unused"))


def test_c2db_file(tmp_path):
    file = tmp_path / "c2db.db"
    sheets = [mx2("MoS2", vacuum=7.5), mx2("WSe2", a=3.32, thickness=3.34, vacuum=7.5)]
    with ase.db.connect(file) as database:
        for sheet, uid in zip(sheets, ["1MoS2-1", None], strict=True):
            sheet.pbc = (True, True, False)
            database.write(sheet, **({"uid": uid} if uid else {}), data={"gap": [1.7]})
        flat = sheets[0].copy()
        flat.cell[2] = 0
        database.write(flat, uid="flat")
    before = file.read_bytes()
    found = c2db_file(file)
    unique_id = ase.db.connect(file).get(id=2).unique_id
    assert [s.material_id for s in found] == ["1MoS2-1", unique_id, "flat"]
    for sheet, retrieved in zip(sheets, found, strict=False):
        crystal = structure(retrieved)
        assert crystal.lattice.pbc == (True, True, False)
        assert [site.specie.symbol for site in crystal] == sheet.get_chemical_symbols()
        np.testing.assert_allclose(crystal.lattice.matrix, sheet.cell, atol=1e-12)
        np.testing.assert_allclose(crystal.cart_coords, sheet.positions, atol=1e-12)
    assert found[2].content == b""  # without a third lattice vector there is no structure to give
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: b"",
        lambda content: b"not a database" * 100,
        lambda content: content[: len(content) // 2],
        None,
    ],
    ids=["empty", "text", "truncated", "missing"],
)
def test_broken_c2db_file_is_named_and_left_alone(tmp_path, spoil):
    file = tmp_path / "c2db.db"
    if spoil:
        with ase.db.connect(file) as database:
            for _ in range(50):
                database.write(mx2("MoS2"), uid="1MoS2-1")
        file.write_bytes(spoil(file.read_bytes()))
        before = file.read_bytes()
    message = "not a readable ASE database" if spoil else "DIFFRACTORY_DATA"
    with pytest.raises(InputError, match=message) as error:
        c2db_file(file)
    assert str(file) in str(error.value)
    assert file.read_bytes() == before if spoil else not file.exists()


# --- OPTIMADE ---------------------------------------------------------------------------------


def optimade_entry(name: str, **changes: Any) -> dict[str, Any]:
    attributes = {
        "lattice_vectors": NACL.lattice.matrix.tolist(),
        "dimension_types": [1, 1, 1],
        "cartesian_site_positions": NACL.cart_coords.tolist(),
        "species": [
            {"name": "cation", "chemical_symbols": ["Na"], "concentration": [1.0]},
            {"name": "Cl", "chemical_symbols": ["Cl"], "concentration": [1.0]},
        ],
        "species_at_sites": ["cation"] * 4 + ["Cl"] * 4,
        "structure_features": [],
    }
    return {"id": name, "type": "structures", "attributes": attributes | changes}


def provider(entries: list[dict[str, Any]], page_size: int = 2) -> Callable[..., Any]:
    """Return the ``respond`` of an OPTIMADE provider; its link is a string or an object in turn."""

    def respond(server, path, parameters, headers):
        assert path == "/v1/structures"
        start = int(parameters.get("page_offset", 0))
        if f"page {start // page_size}" in server.broken:
            return None
        for word in server.broken & {"429", "500", "400"}:
            return int(word), '{"errors": [{"detail": "cannot parse the filter"}]}'
        after = f"{server.url}{path}?page_offset={start + page_size}"
        return 200, json.dumps(
            {
                "data": entries[start : start + page_size],
                "links": {"next": {"href": after} if start % 4 else after}
                if start + page_size < len(entries)
                else {"next": None},
                "meta": {"data_returned": len(entries)},
            }
        )

    return respond


def download(server: Server, downloads: Path, limit: int = 1000, condition: str = "nsites<9"):
    settings = {
        "source": "optimade",
        "base_url": server.url,
        "filter": condition,
        "max_structures": limit,
    }
    return list(SOURCES["optimade"](settings, Path(), downloads))


def test_optimade_pages(tmp_path):
    entries = [optimade_entry(f"e{n}") for n in range(5)]
    with serve(provider(entries)) as server:
        found = download(server, tmp_path)
        assert [s.material_id for s in found] == ["e0", "e1", "e2", "e3", "e4"]
        assert {s.source for s in found} == {"optimade"}
        assert len(server.requests) == 3
        assert parse_qs(urlsplit(server.requests[0]).query)["filter"] == ["nsites<9"]
        assert structure(found[4]) == NACL
        # finished pages are not asked for again, but by another query they are
        assert download(server, tmp_path) == found
        assert len(server.requests) == 3
        download(server, tmp_path, condition="nsites<8")
        assert len(server.requests) == 6


@pytest.mark.parametrize(("limit", "pages"), [(1, 1), (2, 1), (3, 2), (5, 3), (9, 3)])
def test_optimade_stops_at_the_limit(tmp_path, limit, pages):
    with serve(provider([optimade_entry(f"e{n}") for n in range(5)])) as server:
        assert len(download(server, tmp_path, limit)) == min(limit, 5)
        assert len(server.requests) == pages


def test_optimade_resumes_after_a_dropped_connection(tmp_path):
    with serve(provider([optimade_entry(f"e{n}") for n in range(5)])) as server:
        server.broken.add("page 1")
        with pytest.raises(InputError, match=r"page_offset=2 could not be read .* run again"):
            download(server, tmp_path)
        server.broken.clear()
        before = len(server.requests)
        assert [s.material_id for s in download(server, tmp_path)] == [f"e{n}" for n in range(5)]
        assert [urlsplit(request).query for request in server.requests[before:]] == [
            "page_offset=2",
            "page_offset=4",
        ]
        assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize(("status", "attempts"), [("429", 3), ("500", 3), ("400", 1)])
def test_optimade_refusals_are_retried_where_they_may_pass(tmp_path, status, attempts):
    with serve(provider([optimade_entry("e0")])) as server:
        server.broken.add(status)
        with pytest.raises(InputError, match=rf"answered {status} .*cannot parse") as error:
            download(server, tmp_path)
        assert server.url in str(error.value)
        assert len(server.requests) == attempts


def test_optimade_survives_one_refusal(tmp_path):
    answer = provider([optimade_entry("e0")])

    def respond(server, *request):
        return (503, "busy") if len(server.requests) == 1 else answer(server, *request)

    with serve(respond) as server:
        assert len(download(server, tmp_path)) == 1


def test_optimade_survives_one_timeout(tmp_path, monkeypatch):
    monkeypatch.setattr(optimade, "TIMEOUT", (5, 0.2))
    answer = provider([optimade_entry("e0")])

    def respond(server, *request):
        time.sleep(0.6 if len(server.requests) == 1 else 0)
        return answer(server, *request)

    with serve(respond) as server:
        assert len(download(server, tmp_path)) == 1
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    "body",
    ["{not json", "<html></html>", "[]", "{}", '{"data": null}', '{"data": [{"type": "x"}]}'],
)
def test_optimade_answers_that_are_none(tmp_path, body):
    with serve(lambda *_: (200, body)) as server:
        with pytest.raises(InputError, match=server.url):
            download(server, tmp_path)
        assert not list(tmp_path.rglob("page*"))


def test_optimade_unreachable(tmp_path):
    url = unreachable()
    with pytest.raises(InputError, match=rf"{url}/v1/structures\S* could not be read"):
        download(Server(lambda *_: None, url=url), tmp_path)


def test_optimade_ends_where_the_links_do_not(tmp_path):
    def respond(server, path, parameters, headers):
        data = [optimade_entry("e0")] if len(server.requests) == 1 else []
        return 200, json.dumps(
            {"data": data, "links": {"next": f"{path}?page={len(server.requests)}"}}
        )

    with serve(respond) as server:
        assert len(download(server, tmp_path)) == 1
        assert len(server.requests) == 2
    with serve(
        lambda server, *_: (
            200,
            json.dumps({"data": [optimade_entry("e0")], "links": {"next": server.url + "/same"}}),
        )
    ) as server:
        assert len(list(optimade.query(server.url, "", None, "c2db", tmp_path))) == 2


def test_optimade_disorder_stays_visible(tmp_path):
    mixed = [
        {"name": "cation", "chemical_symbols": ["Na", "K"], "concentration": [0.75, 0.25]},
        {"name": "Cl", "chemical_symbols": ["Cl", "vacancy"], "concentration": [0.9, 0.1]},
    ]
    unknown = [{"name": "cation", "chemical_symbols": ["X"], "concentration": [1.0]}]
    entries = [
        optimade_entry("mixed", species=mixed, structure_features=["disorder"]),
        optimade_entry("symbols", species=None, species_at_sites=["Na"] * 4 + ["Cl"] * 4),
        optimade_entry("slab", dimension_types=[1, 1, 0]),
        optimade_entry("no positions", cartesian_site_positions=None),
        optimade_entry("too few", cartesian_site_positions=[[0, 0, 0]]),
        optimade_entry("no lattice", lattice_vectors=[[1, 0, 0], [0, 1, 0], [None] * 3]),
        optimade_entry("flat", lattice_vectors=[[1, 0, 0], [0, 1, 0], [0, 0, 0]]),
        optimade_entry("implicit", structure_features=["implicit_atoms"]),
        optimade_entry("unknown", species=unknown),
    ]
    with serve(provider(entries, 20)) as server:
        found = {s.material_id: s for s in download(server, tmp_path)}
    assert list(found) == [entry["id"] for entry in entries]
    crystal = structure(found["mixed"])
    assert not crystal.is_ordered
    assert crystal[0].species.as_dict() == {"Na": 0.75, "K": 0.25}
    assert crystal[7].species.as_dict() == {"Cl": 0.9}
    assert structure(found["symbols"]) == NACL
    assert structure(found["slab"]).lattice.pbc == (True, True, False)
    for name in ("no positions", "too few", "no lattice", "flat", "implicit", "unknown"):
        with pytest.raises((KeyError, ValueError)):
            structure(found[name])


def test_c2db_over_optimade(tmp_path):
    with serve(provider([optimade_entry(f"e{n}") for n in range(5)])) as server:
        found = list(c2db.retrieve({"base_url": f"{server.url}/v1/"}, Path(), tmp_path))
        assert [(s.material_id, s.source) for s in found] == [(f"e{n}", "c2db") for n in range(5)]
        assert "filter" not in parse_qs(urlsplit(server.requests[0]).query)


# --- Materials Project ------------------------------------------------------------------------


def materials(count: int) -> Callable[..., Any]:
    """Return the ``respond`` of a Materials Project with ``count`` materials, newest first."""
    names = [f"mp-{n}" for n in reversed(range(100, 100 + count))]

    def respond(server, path, parameters, headers):
        if path == "/heartbeat":
            version = "2" if "new database" in server.broken else "1"
            status = {"version": "0.99", "db_version": version, "access_controlled_batch_ids": []}
            return 200, json.dumps(status)
        assert path == "/materials/summary/"
        if headers["x-api-key"] != KEY:
            return 401, json.dumps({"detail": f"no such key: {headers['x-api-key']}"})
        if "material_ids" in parameters:
            assert parameters["_fields"] == "material_id,structure"
            chosen = [n for n in names if n in parameters["material_ids"].split(",")]
        else:
            assert (parameters["theoretical"], parameters["nsites_max"]) == ("False", "20")
            assert parameters["_fields"] == "material_id"
            chosen = names
        if server.broken & set(chosen[-1:]) and "material_ids" in parameters:
            return (200, "{not json") if "malformed" in server.broken else (500, f"echo {KEY}")
        skip = int(parameters.get("_skip", 0))
        page = chosen[skip : skip + int(parameters["_limit"])]
        documents = [
            {"material_id": name, "structure": NACL.as_dict() if name != "mp-101" else None}
            for name in page
        ]
        return 200, json.dumps({"data": documents, "meta": {"total_doc": len(chosen)}})

    return respond


@pytest.fixture
def project(monkeypatch):
    monkeypatch.setenv("MP_API_KEY", KEY)
    monkeypatch.setattr(materials_project, "CHUNK", 2)
    with serve(materials(5)) as server:
        monkeypatch.setenv("MP_API_ENDPOINT", server.url)
        yield server


def query_project(downloads: Path) -> list[RetrievedStructure]:
    return list(SOURCES["materials_project"]({"max_sites": 20}, Path(), downloads))


def queries(server: Server) -> list[str]:
    """Return what was asked for, heartbeats aside: ``ids`` or identifiers of structures."""
    parameters = [parse_qs(urlsplit(r).query) for r in server.requests if "heartbeat" not in r]
    return [query.get("material_ids", ["ids"])[0] for query in parameters]


def test_materials_project(project, tmp_path, monkeypatch):
    found = query_project(tmp_path)
    assert [s.material_id for s in found] == [f"mp-{n}" for n in range(100, 105)]
    assert queries(project) == ["ids", "mp-100,mp-101", "mp-102,mp-103", "mp-104"]
    assert structure(found[0]) == NACL
    assert found[1].content == b""
    assert query_project(tmp_path) == found
    assert len(queries(project)) == 4
    # mp_api asks each endpoint for its version once per process; this one has another name
    project.broken.add("new database")
    monkeypatch.setenv("MP_API_ENDPOINT", project.url.replace("127.0.0.1", "localhost"))
    assert query_project(tmp_path) == found
    assert len(queries(project)) == 8


@pytest.mark.parametrize("malformed", [False, True], ids=["500", "malformed"])
def test_materials_project_resumes_and_hides_the_key(project, tmp_path, caplog, capfd, malformed):
    caplog.set_level(logging.DEBUG)
    project.broken |= {"mp-102", "malformed"} if malformed else {"mp-102"}
    with pytest.raises(InputError, match="the Materials Project could not be read") as error:
        query_project(tmp_path)
    assert malformed or "echo ***" in str(error.value)
    project.broken.clear()
    project.requests.clear()
    assert len(query_project(tmp_path)) == 5
    assert queries(project) == ["mp-102,mp-103", "mp-104"]
    assert KEY not in str(error.value) + caplog.text + "".join(capfd.readouterr())
    assert all(KEY.encode() not in file.read_bytes() for file in tmp_path.rglob("*.json"))


def test_materials_project_refuses_a_wrong_key(project, tmp_path, monkeypatch):
    wrong = KEY[::-1]
    monkeypatch.setenv("MP_API_KEY", wrong)
    with pytest.raises(InputError, match=r"401.*no such key: \*\*\*") as error:
        query_project(tmp_path)
    assert wrong not in str(error.value)


def test_materials_project_unreachable(project, tmp_path, monkeypatch):
    monkeypatch.setenv("MP_API_ENDPOINT", unreachable())
    with pytest.raises(InputError, match=r"could not be read \(ConnectionError.* run again"):
        query_project(tmp_path)


@pytest.mark.parametrize("key", ["", " ", "two words\n", "\u00fcmlaut"])
def test_materials_project_needs_a_key(project, tmp_path, monkeypatch, key):
    monkeypatch.setenv("MP_API_KEY", key)
    with pytest.raises(InputError, match="MP_API_KEY does not hold a key"):
        query_project(tmp_path)
    assert project.requests == []


def test_a_missing_key_is_noticed_first():
    """In a new process: the answer comes before mp_api, or any other source's package, is there."""
    program = """
import sys
from pathlib import Path
from diffractory.store import InputError
from diffractory.structures.sources import SOURCES
try:
    list(SOURCES["materials_project"]({"max_sites": 20}, Path(), Path()))
except InputError as error:
    print(error)
print([name for name in ("mp_api", "requests", "ase", "pymatgen") if name in sys.modules])
"""
    environment = {name: value for name, value in os.environ.items() if name != "MP_API_KEY"}
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, text=True, env=environment
    )
    message, imported = answer.stdout.strip().splitlines()
    assert message.startswith("the environment variable MP_API_KEY does not hold a key")
    assert imported == "[]"


# --- the stage --------------------------------------------------------------------------------


def stage(settings: dict[str, Any], tmp_path: Path) -> tuple[bytes, dict[str, Any]]:
    retrieved, run = tmp_path / "out" / "retrieved.parquet", tmp_path / "out" / "run.json"
    retrieve_structures(settings, "mine", tmp_path, tmp_path / "downloads", retrieved, run, seed=3)
    return retrieved.read_bytes(), json.loads(run.read_text())


def test_stage_writes_table_and_record(tmp_path):
    settings = {"source": "structure_folder", "path": "data"}
    data = tmp_path / "data"
    data.mkdir()
    (data / "b.cif").write_bytes(b"\xff")
    (data / "a.cif").write_bytes(b"data_a")
    (data / "c.xyz").write_bytes(b"")
    written, record = stage(settings, tmp_path)
    table = pd.read_parquet(tmp_path / "out" / "retrieved.parquet")
    assert list(table.columns) == ["material_id", "source", "format", "content"]
    assert table["material_id"].tolist() == ["a", "b", "c"]
    assert table["content"].tolist() == [b"data_a", b"\xff", b""]
    assert record["facts"]["retrieved"] == 3
    assert record["config"] == {"datasets": {"mine": settings}}
    assert record["seed"] == 3
    assert list(record["inputs"]) == [str(data)]
    snapshot = record["facts"]["snapshot_sha256"]

    again, record = stage(settings, tmp_path)
    assert again == written
    assert record["facts"]["snapshot_sha256"] == snapshot
    (data / "c.xyz").unlink()
    (data / "c.xy").write_bytes(b"z")
    assert stage(settings, tmp_path)[1]["facts"]["snapshot_sha256"] != snapshot


def test_stage_takes_identifiers_that_are_not_utf_8(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"id,cif\n\xe9,data_\xe9\n")
    columns = {"id_column": "id", "structure_column": "cif"}
    stage({"source": "structure_table", "paths": ["t.csv"], **columns}, tmp_path)
    table = pd.read_parquet(tmp_path / "out" / "retrieved.parquet")
    assert table["material_id"].tolist() == ["\ufffd"]
    assert table["content"].tolist() == [b"data_\xe9"]


@pytest.mark.parametrize(
    "settings",
    [
        {
            "source": "structure_table",
            "paths": ["t.csv"],
            "id_column": "id",
            "structure_column": "cif",
        },
        {"source": "structure_folder", "path": "nowhere"},
    ],
    ids=["nothing", "missing"],
)
def test_stage_stops_without_structures_and_leaves_nothing(tmp_path, settings):
    (tmp_path / "t.csv").write_text("id,cif\n")
    with pytest.raises(InputError):
        stage(settings, tmp_path)
    assert not (tmp_path / "out").exists()
