"""studies.theory: closed forms, derivatives, and all parts in small."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from metaopt.base.process import World
from metaopt.landscape.criticality import share
from studies.theory import __main__ as command
from studies.theory import bound, newton
from studies.theory.convex import Problems, run
from studies.theory.convex import Size as ConvexSize
from studies.theory.displacement import to_circle, to_parabola
from studies.theory.page import text
from studies.theory.planes import PLANES, Plane


@pytest.mark.parametrize("plane", PLANES.values(), ids=list(PLANES))
def test_derivatives_of_the_plane_functions(plane: Plane) -> None:
    w = np.array([[0.3, -1.2, 2.0], [0.7, 0.4, -1.0]])
    np.testing.assert_allclose(plane.point(plane.uv(w)), w, atol=1e-12)
    h = 1e-6
    for i in range(2):
        step = np.zeros((2, 1))
        step[i] = h
        slope = (plane.loss(w + step) - plane.loss(w - step)) / (2 * h)
        np.testing.assert_allclose(plane.gradient(w)[i], slope, rtol=1e-6)
        bends = (plane.gradient(w + step) - plane.gradient(w - step)) / (2 * h)
        np.testing.assert_allclose(plane.hessian(w)[:, i], bends, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(plane.loss(plane.turned(w, 0.9)), plane.loss(w))
    turned = (plane.turned(w, h) - plane.turned(w, -h)) / (2 * h)
    np.testing.assert_allclose(plane.velocity(w), turned, rtol=1e-6)
    squares = plane.squared(plane.turned(w, h)) - plane.squared(plane.turned(w, -h))
    np.testing.assert_allclose(plane.slope(w), squares / (2 * h), rtol=1e-5)


@pytest.mark.parametrize("plane", PLANES.values(), ids=list(PLANES))
def test_the_residual_is_that_of_the_package(plane: Plane) -> None:
    w = np.array([0.3, 0.7])
    product = torch.from_numpy(plane.hessian(w) @ plane.gradient(w))
    velocity = torch.from_numpy(plane.velocity(w))
    assert float(plane.residual(w)) == pytest.approx(float(share(product, velocity[None])))
    assert plane.residual(plane.extreme(w)) < 1e-9
    angles = np.linspace(0, 2 * np.pi, 100_001)
    most = plane.squared(plane.turned(w[:, None], angles)).max()
    assert plane.squared(plane.extreme(w)) == pytest.approx(most, rel=1e-7)


def test_what_is_expected_of_sgd_is_what_a_loop_finds() -> None:
    problem = bound.Problem.drawn(bound.SMOKE)
    steps = np.array([7.0])
    lr = float(problem.lr(steps)[0])
    K, variance = problem.eigenvalues, (problem.noise**2).mean(0)
    plain, moved = problem.start**2, float((problem.start**2).sum())
    for _ in range(6):
        plain = (1 - lr * K) ** 2 * plain + (lr * K) ** 2 * variance
        moved = (1 - lr * K[0]) ** 2 * moved + float(((lr * K) ** 2 * variance).sum())
    found = problem.least(steps)
    first = problem.beta * float((problem.start**2).sum())
    assert found["plain"][0] == pytest.approx(min(first, problem.beta * plain.sum()))
    assert found["teleported"][0] == pytest.approx(min(first, problem.beta * moved))


def test_the_steepest_point_of_a_level_set() -> None:
    problem, start = newton.Problem.drawn(3, 0)
    level = float(problem.loss(start))
    directions = np.random.default_rng(0).standard_normal((20_000, 3))
    w, share_of = problem.steepest(level, directions[:200])
    assert problem.loss(w) == pytest.approx(level, rel=1e-13)
    g = problem.gradient(w)
    np.testing.assert_allclose(problem.hessian(w) @ g, share_of * g, rtol=1e-10, atol=1e-13)
    others = problem.gradient(problem.on_level(directions, level))
    assert np.linalg.norm(g) >= np.linalg.norm(others, axis=1).max()
    h = 1e-6
    for i, step in enumerate(h * np.eye(3)):
        slope = (problem.loss(w + step) - problem.loss(w - step)) / (2 * h)
        assert g[i] == pytest.approx(float(slope), rel=1e-6)
        bends = (problem.gradient(w + step) - problem.gradient(w - step)) / (2 * h)
        np.testing.assert_allclose(problem.hessian(w)[i], bends, rtol=1e-6)


def test_convex_problems_have_their_minimum_at_zero() -> None:
    problems, start = Problems.drawn(5)
    zero = np.zeros((5, 1, 2))
    np.testing.assert_allclose(problems.loss(zero), 0, atol=1e-15)
    np.testing.assert_allclose(problems.gradient(zero), 0, atol=1e-15)
    h = 1e-6
    for i, step in enumerate(h * np.eye(2)):
        w = start[:, None]
        slope = (problems.loss(w + step) - problems.loss(w - step)) / (2 * h)
        np.testing.assert_allclose(problems.gradient(w)[..., i], slope, rtol=1e-6, atol=1e-8)
    angles = np.arange(90) * (2 * np.pi / 90)
    directions = np.stack([np.cos(angles), np.sin(angles)], 1)
    steep = problems.steepest(start, directions)
    np.testing.assert_allclose(problems.loss(steep[:, None]), problems.loss(start[:, None]))
    taken, worst = run(problems, start, ConvexSize(5, 90, 50, 1e-2), teleported=False)
    assert (worst < 1).all()
    assert (taken <= 50).all()


def test_distances_to_curves() -> None:
    points = np.array([[0.0, 0.0, 0.3, -2.0], [0.5, 1.0, -0.4, 1.0]])
    np.testing.assert_allclose(to_circle(points)[:2], [0.5, 1.0])
    x = np.linspace(-5, 5, 200_001)
    for found, (p, q) in zip(to_parabola(points), points.T, strict=True):
        assert found == pytest.approx(float(np.hypot(x - p, x**2 / 2 - q).min()), abs=1e-6)


def test_the_page_has_the_tables_of_its_figures() -> None:
    found = json.loads(command.PAGE.path.with_name("theory.json").read_text(encoding="utf-8"))
    assert list(found) == list(command.PARTS)
    assert text(found) in command.PAGE.path.read_text(encoding="utf-8")
    assert all(one["holds"] for part in found.values() for one in part["claims"])


def test_all_parts_run_small_and_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "theory.md"
    arguments = ["theory", "--smoke", "--out", str(tmp_path), "--write-page", str(page)]
    monkeypatch.setattr("sys.argv", arguments)
    command.main(World())
    first = capsys.readouterr().out
    kept = sorted(path.name for path in tmp_path.glob("?_*.json"))
    assert len(kept) == 10
    stamps = [(tmp_path / name).stat().st_mtime_ns for name in kept]
    command.main(World())
    assert capsys.readouterr().out == first
    assert stamps == [(tmp_path / name).stat().st_mtime_ns for name in kept]
    figures = json.loads((tmp_path / "theory.json").read_text())
    assert set(figures) == set("abcdef")
    assert (tmp_path / "theory.png").stat().st_size > 10_000
    assert "### (e) Test functions" in page.read_text()
    steep = {c["what"]: c["holds"] for c in figures["e"]["claims"]}
    assert steep["its largest on the orbit"]
    assert steep["f after one step of 1/18 from there"]
