"""Beams, trusses and fins: closed forms, peers, limits, and what the coarse models share with the true ones."""
import numpy as np
import pytest
import torch
from scipy.linalg import solveh_banded

from designloop.core.errors import DesignError, ParameterError
from designloop.core.seeds import cap_threads
from designloop.tasks.structures import (
    BAY,
    CONDUCTIVITY,
    FILM,
    FLUX,
    LENGTH,
    LOAD,
    STEEL_E,
    WIDTH,
    E,
    banded_factor,
    banded_solve,
    beam_solve,
    cantilever,
    fin_solve,
    heat_fin,
    ten_bar_truss,
    truss_solve,
)

cap_threads(1)
PROBLEMS = [cantilever, ten_bar_truss, heat_fin]


@pytest.mark.parametrize("p, m", [(0, 5), (1, 40), (3, 17), (3, 3)])
def test_banded_systems_are_solved_as_scipy_solves_them(p, m):
    rng = np.random.default_rng(p + m)
    bands, rhs = rng.normal(size=(4, p + 1, m)), rng.normal(size=(4, m))
    bands[:, 0] += 4 * p + 3
    for k in range(1, p + 1): bands[:, k, m - k:] = 0
    got = banded_solve(banded_factor(bands), rhs)
    for b, y, x in zip(bands, rhs, got, strict=True): assert np.allclose(solveh_banded(b, y, lower=True), x)


def test_a_structure_without_supports_is_refused():
    with pytest.raises(ParameterError, match="supports"):
        banded_factor(np.array([[[1.0, 1.0], [-1.0, 0.0]]]))


@pytest.mark.parametrize("elements", [1, 3, 200])
def test_a_uniform_cantilever_has_its_closed_form(elements):
    inertia = WIDTH / 12 * np.array([0.02, 0.05]) ** 3
    u, moment = beam_solve(np.repeat(inertia[:, None], elements, 1))
    x = LENGTH * np.arange(elements + 1) / elements
    exact = LOAD * x**2 * (3 * LENGTH - x) / (6 * E * inertia[:, None])
    assert np.allclose(u[..., 0], exact, atol=1e-12) and np.allclose(moment[:, 0, 0], LOAD * LENGTH)


def test_the_coarse_beam_converges_to_the_true_one():
    p, h = cantilever(), torch.tensor([[80.0, 60, 50, 30], [40, 50, 60, 70]], dtype=torch.float64)
    from designloop.tasks.structures import _cantilever
    truth = p.evaluate(h)["deflection"].numpy()
    error = [np.abs(_cantilever(h, n, False)["deflection"] / truth - 1).max() for n in (4, 16, 64)]
    assert error[0] > error[1] > error[2] and error[2] < 1e-3


def test_stress_at_the_clamp_of_a_uniform_beam():
    out = cantilever().evaluate([[50.0] * 4])
    assert float(out["stress"]) == pytest.approx(6 * LOAD * LENGTH / (WIDTH * 0.05**2) / 1e6)
    assert float(out["mass"]) == pytest.approx(2700 * 0.02 * 0.05)


def test_the_truss_is_linear_for_small_loads_and_balances():
    areas = np.random.default_rng(0).uniform(1e-3, 2e-2, (5, 10))
    linear, curved = (truss_solve(areas, nonlinear, load=10.0) for nonlinear in (False, True))
    assert np.allclose(linear[0], curved[0], rtol=1e-4, atol=1e-12) and np.allclose(linear[1], curved[1], rtol=1e-3, atol=10)
    twice = truss_solve(areas, False, load=20.0)
    assert np.allclose(twice[0], 2 * linear[0])
    # the wall holds both loads: the two diagonals at the wall and nothing else carry the shear of the first bay (bars 7 and 8)
    stress = linear[1]
    shear = (stress[:, 7] * areas[:, 7] - stress[:, 6] * areas[:, 6]) / np.sqrt(2)
    assert np.allclose(np.abs(shear), 20.0)


def test_newton_reaches_equilibrium_whatever_the_steps():
    areas = np.random.default_rng(1).uniform(1e-3, 2e-2, (4, 10))
    assert np.allclose(truss_solve(areas, steps=10)[0], truss_solve(areas, steps=5)[0], atol=1e-8)
    assert BAY == pytest.approx(360 * 0.0254) and STEEL_E == pytest.approx(1e7 * 6894.76, rel=1e-3)


def test_the_fin_reaches_its_steady_state_and_refines():
    length, thick = np.array([0.05, 0.1]), np.array([0.002, 0.003])
    m = np.sqrt(2 * FILM / (CONDUCTIVITY * thick))
    exact = FLUX / (np.sqrt(2 * FILM * CONDUCTIVITY * thick) * np.tanh(m * length))
    assert np.allclose(fin_solve(length, thick, thick, 200, 20, 3e4)[:, 0], exact, rtol=1e-3)
    fine, middle, coarse = (fin_solve(length, thick, thick / 2, n, k)[:, 0] for n, k in ((200, 120), (100, 60), (20, 6)))
    assert (np.abs(middle - fine) < np.abs(coarse - fine)).all()


@pytest.mark.parametrize("make", PROBLEMS)
def test_prices_names_batches_and_bounds(make):
    p = make()
    x = p.space.sample(6, np.random.default_rng(0))
    low, high = p.evaluate(x, 0.0), p.evaluate(x, 1.0)
    assert low.cost.tolist() == [0.05] * 6 and high.cost.tolist() == [1.0] * 6 and torch.equal(high.values, p.evaluate(x).values)
    assert low.names == high.names == p.outcome_names and len(p.constraints) >= 1
    assert torch.allclose(p.evaluate(x[2:3]).values, high.values[2:3], rtol=1e-9)
    assert torch.isfinite(p.evaluate(torch.stack([p.space.low, p.space.high])).values).all()            # also in the worst corners
    with pytest.raises(DesignError): p.evaluate(2 * torch.stack([p.space.high]))
    with pytest.raises(ParameterError): p.evaluate(x, 0.5)
    with pytest.raises(ParameterError, match="ratio"): make(0.5)


@pytest.mark.parametrize("make, names", [(cantilever, ("mass", "deflection")), (ten_bar_truss, ("mass", "displacement")), (heat_fin, ("mass", "temperature"))])
def test_more_material_is_heavier_and_stiffer(make, names):
    p = make()
    thin = p.space.low + 0.3 * (p.space.high - p.space.low)
    thick = p.space.low + 0.7 * (p.space.high - p.space.low)
    for s in p.fidelities:
        out = p.evaluate(torch.stack([thin, thick]), s)
        assert out[names[0]][0] < out[names[0]][1] and out[names[1]][0] > out[names[1]][1]
