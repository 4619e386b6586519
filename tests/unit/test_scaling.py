import importlib.util
from pathlib import Path

import pytest

from diffractory.store import Patterns, write_patterns

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "scaling.py"


@pytest.fixture(scope="module")
def scaling():
    spec = importlib.util.spec_from_file_location("scaling", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_files_of_a_store_are_those_that_are_written(scaling, tmp_path):
    write_patterns(tmp_path / "store", [Patterns.empty()])
    described = sum(file.is_file() for file in (tmp_path / "store").rglob("*"))
    assert scaling.files_of_store(0, 0) == described


def test_only_the_arrays_that_are_full_take_a_further_file(scaling):
    # qx, qy, intensity and hkl are four arrays of spots; offsets and five more are of patterns.
    in_one = scaling.files_of_store(1, scaling.SHARD)
    assert scaling.files_of_store(1, scaling.SHARD + 1) == in_one + 4
    assert scaling.files_of_store(scaling.SHARD + 1, 1) == in_one + 6


def test_numbers_of_patterns_are_the_published_ones(scaling):
    at = scaling.Scale(1, 60.0)
    assert at.patterns == 3_600_000
    assert at.test == pytest.approx(921_888, rel=0.05)
    assert at.train == pytest.approx(2_765_943 * 0.9, rel=0.05)  # a tenth is for validation


def test_hours_on_a_cpu_do_not_count_where_there_are_hours_on_a_gpu(scaling):
    rows = [
        scaling.Row("both", 1, "", "", 870.0, 480.0, 1.0, 2),
        scaling.Row("not measured", 1, "", "", 16.0, None, 1.0, 2),
        scaling.Row("cpu", 1, "", "", 4.0, 0.0, 1.0, 2),
    ]
    whole = scaling.total(rows, 3)
    assert (whole.core_hours, whole.gpu_hours, whole.size, whole.files) == (20.0, 480.0, 3.0, 6)


def test_every_row_of_networks_has_a_rate_and_only_the_published_one_has_gpu_hours(scaling):
    rows = scaling.network_costs(scaling.Scale(1, 60.0), 400.0)
    assert all(row.core_hours > 0 for row in rows)
    assert {row.stage.split()[1] for row in rows if row.gpu_hours} == {"pe_ag_gmoe"}
    assert sum(row.jobs for row in rows) == 9


def test_every_planned_job_belongs_to_a_study(scaling):
    """Those of the symmetry study are as many as docs/scaling.md lists."""
    jobs = scaling.dry_run(8, 8).jobs
    others = scaling.UED_RULES + scaling.STRUCTURE_2D_RULES + scaling.GENERATION_RULES
    assert all(jobs[rule] for rule in others + scaling.SCAN_RULES)
    assert scaling.symmetry_jobs(jobs).total() == 50
