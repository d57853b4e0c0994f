"""The discrete half of the gallery: each page's claim, checked by other means."""

import importlib.util
import itertools
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

GALLERY = Path(__file__).parents[1] / "examples" / "gallery"


def load(name: str) -> ModuleType:
    """A page's script as a module."""
    pytest.importorskip("matplotlib")
    spec = importlib.util.spec_from_file_location(name, GALLERY / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def draws(page: ModuleType, result: object, folder: Path) -> None:
    """The picture of a small run is a picture."""
    page.draw(result, folder / "picture.png")
    assert (folder / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_knapsack_interdiction_leaves_the_least_that_any_bans_leave(tmp_path):
    page = load("knapsack_interdiction")
    result = page.run(n=10, budgets=(0, 3, 7, 12, 20), seed=1)
    items, sets = result.instance, np.array(list(itertools.product([0, 1], repeat=10)))
    fitting = sets[sets @ items.weights <= items.capacity]
    left = ((fitting * items.values) @ (1 - sets).T).max(0)  # of every set of bans
    assert result.proven
    for k, budget in enumerate(result.budgets):
        affordable = sets @ items.prices <= budget
        assert result.value[k] == left[affordable].min()
        assert items.prices @ result.banned[k] <= budget
        assert items.weights @ result.taken[k] <= items.capacity
        assert items.values @ result.taken[k] == result.value[k]
        assert not (result.banned[k] * result.taken[k]).any()
        assert result.value[k] <= min(result.densest[k], result.most_wanted[k])
    assert (result.densest > result.value).any()  # foresight pays
    draws(page, result, tmp_path)
