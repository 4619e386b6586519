"""Lists of augmentation steps on crystals, and the calculators behind some of them."""

import json
import subprocess
import sys

import numpy as np
import pytest
from ase.build import bulk

from diffractory.augment.calculators import calculator, from_atoms, relax, snapshots, to_atoms
from diffractory.augment.compose import STEPS, Context, augment_crystal
from diffractory.augment.crystals import repeat, strain
from diffractory.augment.mote2 import orthogonal_cell
from diffractory.errors import InputError
from diffractory.simulate.crystal import Crystal

STEPS_OF_STUDY = [
    {"repeat": [[4, 6], 3, 1]},
    {"vacancies": {"fraction": {"Mo": [0.0, 0.2], "Te": 0.1}}},
    {"strain": {"limit": 0.1, "in_plane": True}},
    {"thermal": {"debye_waller": [0.1, 0.6]}},
]
PHONON_STEPS = [
    {"relax": {"max_force": 0.01}},
    {"repeat": [2, 3, 2]},
    {"phonon": {"q_points": ["X", [0.5, 0.5, 0.5]], "amplitude": [0.05, 0.1]}},
    {"random_displacements": {"temperature": [100, 300]}},
]


def same(one: Crystal, two: Crystal) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(two, name))
        for name in ("cell", "positions", "numbers")
    )


@pytest.fixture(scope="module")
def emt():
    return calculator("emt")


@pytest.fixture(scope="module")
def copper() -> Crystal:
    return from_atoms(bulk("Cu", cubic=True, a=3.7))


def test_draws_belong_to_the_seed_and_the_sample():
    cell = orthogonal_cell("2h")
    once, drawn = augment_crystal(cell, STEPS_OF_STUDY, 1, "train/a/0")
    again, _ = augment_crystal(cell, STEPS_OF_STUDY, 1, "train/a/0")
    assert same(once, again)
    assert same(cell, orthogonal_cell("2h"))
    for other in (
        augment_crystal(cell, STEPS_OF_STUDY, 2, "train/a/0"),
        augment_crystal(cell, STEPS_OF_STUDY, 1, "test/a/0"),
    ):
        assert other[1] != drawn


def test_a_step_draws_the_same_whatever_the_others_draw():
    cell = orthogonal_cell("2h")
    other = [STEPS_OF_STUDY[0], {"vacancies": {"fraction": 0.5}}, *STEPS_OF_STUDY[2:]]
    drawn = [augment_crystal(cell, steps, 1, "x")[1] for steps in (STEPS_OF_STUDY, other)]
    for place in (0, 2, 3):
        assert drawn[0][place] == drawn[1][place]


def test_the_same_step_twice_draws_twice():
    steps = [{"thermal": {"debye_waller": [0.1, 0.6]}}] * 2
    _, (first, second) = augment_crystal(orthogonal_cell("2h"), steps, 0, "x")
    assert first != second


def test_what_was_drawn_is_what_was_done():
    cell = orthogonal_cell("2h")
    for item in range(20):
        made, drawn = augment_crystal(cell, STEPS_OF_STUDY, 0, item)
        assert json.loads(json.dumps(drawn)) == drawn
        assert [step["step"] for step in drawn] == ["repeat", "vacancies", "strain", "thermal"]
        cells, fraction = np.prod(drawn[0]["cells"]), drawn[1]["fraction"]
        assert drawn[0]["cells"][0] in (4, 5, 6)
        assert 0 <= fraction["Mo"] <= 0.2
        assert (made.numbers == 42).sum() == 2 * cells - round(2 * cells * fraction["Mo"])
        assert (made.numbers == 52).sum() == 4 * cells - round(4 * cells * 0.1)
        rest = repeat(cell, drawn[0]["cells"])
        assert np.allclose(made.cell, strain(rest, drawn[2]["tensor"]).cell)


def test_ranges_are_drawn_evenly_and_ends_of_whole_numbers_included():
    cell = orthogonal_cell("2h")
    drawn = [augment_crystal(cell, STEPS_OF_STUDY[:2], 0, k)[1] for k in range(300)]
    sides = [step[0]["cells"][0] for step in drawn]
    assert np.abs(np.bincount(sides)[4:] - 100).max() < 35  # 4 standard deviations
    fractions = np.array([step[1]["fraction"]["Mo"] for step in drawn])
    assert abs(fractions.mean() - 0.1) < 0.014
    assert fractions.max() > 0.19


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"vacancy": {"fraction": 0.1}}, "no step"),
        ({"repeat": [1, 1, 1], "thermal": {"debye_waller": 1}}, "no step"),
        ({"vacancies": {"fractions": 0.1}}, "takes fraction"),
        ({"vacancies": {}}, "needs fraction"),
        ({"vacancies": 0.1}, "takes fraction"),
        ({"phonon": {"q_points": ["M"], "amplitude": 0.1}}, "calculator, or phonons"),
        ({"relax": {"max_force": 0.1}}, "need a calculator"),
        ({"morph": {"to": "1t", "fraction": 0.5}}, "no crystal 1t"),
    ],
)
def test_wrong_steps_are_named(step, message):
    with pytest.raises(InputError, match=message):
        augment_crystal(orthogonal_cell("2h"), [step], 0, "x")


def test_supercells_morph_cell_by_cell():
    start, end = orthogonal_cell("2h"), orthogonal_cell("1t")
    context = Context(start, {"1t": end})
    crystal = repeat(start, (3, 2, 1))
    made, _ = augment_crystal(crystal, [{"morph": {"to": "1t", "fraction": 1.0}}], 0, "x", context)
    assert np.allclose(made.cell, repeat(end, (3, 2, 1)).cell)
    first = (made.positions @ made.cell)[:6]
    expected = (np.indices((3, 2, 1)).reshape(3, -1).T @ end.cell)[:, None] + first
    assert np.allclose(made.positions @ made.cell, expected.reshape(-1, 3))
    late = [{"vacancies": {"fraction": 0.2}}, {"morph": {"to": "1t", "fraction": 1.0}}]
    with pytest.raises(InputError, match="before"):
        augment_crystal(crystal, late, 0, "x", context)
    strained = [{"strain": {"limit": 0.1}}, {"morph": {"to": "1t", "fraction": 1.0}}]
    with pytest.raises(InputError, match="before strain"):
        augment_crystal(crystal, strained, 0, "x", context)


def test_phonons_are_those_of_the_relaxed_crystal(emt, copper):
    made, drawn = augment_crystal(copper, PHONON_STEPS, 0, "Cu", Context(calculator=emt))
    again, _ = augment_crystal(copper, PHONON_STEPS, 0, "Cu", Context(calculator=emt))
    assert same(made, again)
    relaxed = relax(copper, emt, in_plane=False, max_force=0.01)
    assert np.allclose(made.cell, repeat(relaxed, (2, 3, 2)).cell)
    assert np.isclose(relaxed.cell[0, 0], 3.59, atol=0.01)  # of EMT
    assert drawn[2]["frequency"] > 1
    distance = (made.positions - repeat(relaxed, (2, 3, 2)).positions) @ made.cell
    assert 0.02 < np.sqrt((distance**2).mean()) < 0.2


def test_a_context_may_be_used_for_many_samples(emt, copper):
    context = Context(calculator=emt)
    steps = [{"repeat": [[2, 3], 2, 2]}, *PHONON_STEPS[2:]]
    alone = [augment_crystal(copper, steps, 0, k, Context(calculator=emt))[0] for k in range(2)]
    together = [augment_crystal(copper, steps, 0, k, context)[0] for k in range(2)]
    assert all(map(same, alone, together))


def test_relaxation_keeps_symmetry_and_the_height_of_a_slab(emt, copper):
    pressed = strain(copper, np.diag([0.03, 0.03, 0.02]))
    relaxed = relax(pressed, emt, in_plane=True)
    assert np.isclose(relaxed.cell[2, 2], pressed.cell[2, 2], rtol=1e-12)
    assert np.isclose(relaxed.cell[0, 0], relaxed.cell[1, 1], atol=1e-6)
    assert relaxed.cell[0, 0] < pressed.cell[0, 0]
    with pytest.raises(InputError, match="after 1 steps"):
        relax(pressed, emt, in_plane=False, max_steps=1)


def test_dynamics_reaches_its_temperature_and_repeats_itself(emt, copper):
    crystal = repeat(relax(copper, emt, in_plane=False), (3, 3, 3))

    def run(seed: int) -> list[Crystal]:
        return snapshots(crystal, emt, 300.0, 4, np.random.default_rng(seed), timestep=5.0)

    once, again, other = run(0), run(0), run(1)
    assert all(map(same, once, again))
    assert not same(once[0], other[0])
    distance = np.array([(c.positions - crystal.positions) @ crystal.cell for c in once])
    assert np.abs(distance.mean(axis=1)).max() < 1e-6  # the centre of mass stays
    # Copper at 300 K: B = 0.55 square angstrom (Peng et al., Acta Cryst. A 52, 456 (1996)); less
    # without long waves, more for the softer EMT.
    assert 0.2 < 8 * np.pi**2 * (distance**2).mean() < 1.2


def test_dynamics_that_flies_apart_is_named(emt, copper):
    with pytest.raises(InputError, match="flew apart"):
        snapshots(
            repeat(copper, (2, 2, 2)), emt, 300.0, 1, np.random.default_rng(0), timestep=200.0
        )


def test_dynamics_is_a_step(emt, copper):
    steps = [{"repeat": [2, 2, 2]}, {"dynamics": {"temperature": [200, 400], "duration": 0.1}}]
    made, drawn = augment_crystal(copper, steps, 0, "Cu", Context(calculator=emt))
    assert 200 <= drawn[1]["temperature"] <= 400
    assert (
        0.01 < np.abs((made.positions - repeat(copper, (2, 2, 2)).positions) @ made.cell).max() < 1
    )


@pytest.mark.parametrize(
    "name", ["nope", "no.such.module:Class", "ase.calculators.emt:NoClass", "ase.atoms:units"]
)
def test_unknown_calculators_are_named(name):
    with pytest.raises(InputError, match=f"calculator {name}"):
        calculator(name)


def test_calculators_are_had_by_import_path(copper):
    atoms = to_atoms(copper, calculator("ase.calculators.lj:LennardJones"))
    assert np.isfinite(atoms.get_potential_energy())


def test_vasp_asks_for_its_environment(monkeypatch):
    monkeypatch.delenv("ASE_VASP_COMMAND", raising=False)
    with pytest.raises(InputError, match="ASE_VASP_COMMAND"):
        calculator("vasp")


def test_chgnet_is_silent_and_the_same_on_any_number_of_threads():
    code = (
        "import torch, numpy as np\n"
        "from diffractory.augment.calculators import calculator, to_atoms\n"
        "from diffractory.augment.crystals import displace, repeat\n"
        "from diffractory.augment.mote2 import primitive_cell\n"
        "crystal = repeat(primitive_cell('2h'), (4, 4, 1))\n"
        "crystal = displace(crystal, 0.5, np.random.default_rng(0))\n"
        "chgnet, found = calculator('chgnet'), []\n"
        "for threads in (1, 2, 4):\n"
        "    torch.set_num_threads(threads)\n"
        "    found.append(to_atoms(crystal, chgnet).get_forces())\n"
        "    assert torch.get_num_threads() == threads\n"
        "    chgnet.reset()\n"
        "assert (found[0] == found[1]).all() and (found[0] == found[2]).all()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "Warning" not in done.stderr


def test_all_steps_are_described():
    from diffractory.augment import compose

    assert compose.__doc__ is not None
    described = {
        line.split()[0]
        for line in compose.__doc__.splitlines()
        if "  " in line and line[:1].islower()
    }
    assert described == set(STEPS)
