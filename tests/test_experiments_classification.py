"""The classification experiment's pieces, each against a second opinion; its quick run, end to end."""

import itertools
import pickle

import attacks
import classification
import images
import numpy as np
import pytest
import torch
from classification import Interdicted, Soft
from torch import nn

import bigrad as bg


@pytest.fixture
def linear():
    """A linear model of two classes and images away from 0 and 1, with the sizes of steps that change its mind.

    The worst image within the strength is x - strength × sign(w_own - w_other), closed form; the margin falls by
    strength × |w_own - w_other|_1.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).double()
    model[1].bias.data = -0.5 * model[1].weight.data.sum(1)  # the classes meet at mid-grey, so small steps decide
    pixels = 0.4 + 0.2 * torch.rand(40, 1, 4, 4, dtype=torch.float64)
    labels = model(pixels).argmax(1)
    difference = (model[1].weight[0] - model[1].weight[1]).detach()
    own = torch.where(labels == 0, 1.0, -1.0).double()[:, None] * difference
    scores = model(pixels).detach()
    margin = scores.amax(1) - scores.amin(1)
    strength = float((margin / difference.abs().sum()).median())
    worst = pixels - strength * own.sign().view(-1, 1, 4, 4)
    return model, pixels, labels, strength, worst, margin > strength * difference.abs().sum()


@pytest.mark.parametrize("attack", [attacks.fgsm, attacks.pgd])
def test_gradient_attacks_find_a_linear_model_s_worst_image(linear, attack):
    model, pixels, labels, strength, worst, stays = linear
    assert 0 < stays.sum() < len(stays)
    found = attack(model, pixels, labels, strength)
    np.testing.assert_allclose(found, worst, atol=1e-12)
    assert (attacks.right(model, found, labels) == stays).all()


def test_random_squares_come_to_the_same_worst_image_without_a_gradient(linear):
    model, pixels, labels, strength, worst, _ = linear
    found = attacks.squares(model, pixels, labels, strength, queries=1500)
    np.testing.assert_allclose(found, worst, atol=1e-12)


def test_attacks_stay_within_the_strength_and_the_range_of_pixels():
    torch.manual_seed(1)
    model, pixels, labels = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), torch.rand(9, 1, 8, 8), torch.arange(9)
    for attack in (attacks.fgsm, attacks.pgd, attacks.squares):
        found = attack(model, pixels, labels, 0.3)
        assert found.min() >= 0
        assert found.max() <= 1
        assert (found - pixels).abs().max() <= 0.3 + 1e-6
        assert (found != pixels).any()


@pytest.mark.parametrize("budget", [0, 1, 2, 3])
@pytest.mark.parametrize("shared", [False, True])
def test_interdicted_levels_are_those_of_enumeration(budget, shared):
    """Every choice of levels against every interdiction."""
    draw = np.random.default_rng(budget)
    z, w = draw.standard_normal((40, 3, 4)), draw.random((40, 3, 4))
    w = np.repeat(w[:1], 40, 0) if shared else w
    costs = np.concatenate([z.reshape(40, -1), w.reshape(40, -1)], 1)
    found = Interdicted(3, 4, budget).solve(costs)
    levels, units = np.array(list(itertools.product(range(4), repeat=3))), np.arange(3)
    blocks = np.array([x for x in itertools.product((0, 1), repeat=3) if sum(x) <= budget])
    for k in range(40):
        chosen = z[k][units, levels].sum(1) + (w[k][units, levels] @ blocks.T).max(1)
        assert costs[k] @ found[k] == pytest.approx(chosen.min())
        y, xy = found[k].reshape(2, 3, 4)
        assert (y.argmax(1) == levels[chosen.argmin()]).all()
        assert (y.sum(1) == 1).all()
        assert xy.sum() <= budget


def test_the_adversary_changes_decisions():
    """Else the bilevel layer were the single-level one."""
    draw = np.random.default_rng(0)
    costs = np.concatenate([draw.standard_normal((50, 12)), 2 * draw.random((50, 12))], 1)
    alone, against = (Interdicted(3, 4, budget).solve(costs)[:, :12] for budget in (0, 2))
    assert (alone != against).any(1).mean() > 0.3


def test_the_estimator_s_gradient_is_the_slope_of_the_nudged_value():
    """Interpolate: the value of the game with the loss's slope added, differentiated in the costs, less that without it."""
    oracle, length = Interdicted(3, 4, 2), 0.7
    draw = np.random.default_rng(2)
    given = np.concatenate([draw.standard_normal((5, 12)), draw.random((5, 12))], 1)
    push = np.concatenate([draw.standard_normal((5, 12)), np.zeros((5, 12))], 1)
    costs = torch.tensor(given, requires_grad=True)
    rule = bg.Interpolate(bg.Absolute(length))
    (rule(oracle)(costs) * torch.tensor(push)).sum().backward()

    def value(at: np.ndarray) -> np.ndarray:
        return ((at + length * push) * oracle.solve(at + length * push)).sum(1) - (at * oracle.solve(at)).sum(1)

    for i in range(24):
        step = 1e-6 * np.eye(24)[i]
        slope = (value(given + step) - value(given - step)) / 2e-6 / length
        np.testing.assert_allclose(costs.grad[:, i], slope, atol=1e-6)


def test_soft_views_show_the_decision_and_differentiate_the_shares():
    oracle, draw = Interdicted(3, 4, 1), np.random.default_rng(3)
    costs = torch.tensor(np.concatenate([draw.standard_normal((5, 12)), draw.random((5, 12))], 1))
    weights = torch.randn(5, 12, dtype=torch.float64)
    for hard in (True, False):
        view, at = Soft(0.5, hard), costs.clone().requires_grad_()
        shown = view(oracle, at)[:, :12]
        if hard:
            np.testing.assert_allclose(shown.detach(), oracle.solve(costs.numpy())[:, :12], atol=1e-12)
        (weights * shown).sum().backward()
        z = costs[:, :12].view(5, 3, 4)
        share = (z - 0) / (-0.5 * z.std((1, 2), keepdim=True))
        taken = torch.tensor(oracle.solve(costs.numpy())).view(5, 2, 3, 4)[:, 1].sum(-1, keepdim=True)
        share = (share - costs[:, 12:].view(5, 3, 4) * taken / (0.5 * z.std((1, 2), keepdim=True))).softmax(-1)
        given = weights.view(5, 3, 4)
        slope = -share * (given - (share * given).sum(-1, keepdim=True)) / (0.5 * z.std((1, 2), keepdim=True))
        np.testing.assert_allclose(at.grad[:, :12], slope.reshape(5, 12), atol=1e-10)


def test_every_attack_counts_in_the_worst_and_surrogates_are_asked():
    s = classification.Settings(counts=(60, 20, 20), epochs=2, rates=(3e-3,), strengths=(0.1,), steps=5, queries=10)
    data = classification.split(s, 0)
    model = classification.fit(classification.METHODS["bilevel"], s, data, 0)
    kept = classification.assault(model, classification.fit(classification.Method(), s, data, 1), data.test, 0.3, s)
    assert {f"PGD by {name}" for name in classification.SURROGATES} <= set(kept)
    for name, found in kept.items():
        assert (kept["all attacks"] <= found).all(), name
    assert kept["all attacks"].sum() < attacks.right(model, *data.test).sum()


def test_splits_share_no_image():
    s = classification.Settings()
    found = classification.split(s, 1)
    every = torch.cat([part.pixels.flatten(1) for part in found])
    everything = images.digits()
    assert len(every) == sum(s.counts)
    copies = len(everything.pixels.flatten(1)) - len(everything.pixels.flatten(1).unique(dim=0))
    assert len(every) - len(every.unique(dim=0)) <= copies
    assert every.min() == 0
    assert every.max() == 1


@pytest.fixture
def planes() -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    return draw.integers(0, 256, (4, 3072), dtype=np.uint8), draw.integers(0, 10, 4)


def test_cifar_is_read_from_python_batches(tmp_path, planes):
    """Written as they are: protocol 2, keys of bytes, numpy's old module names."""
    pixels, labels = planes
    batch = {b"data": pixels, b"labels": [int(k) for k in labels], b"batch_label": b"training batch 1 of 5"}
    text = pickle.dumps(batch, protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    (tmp_path / "data_batch_1").write_bytes(text)
    check(images.cifar10(tmp_path), pixels, labels)


def test_cifar_is_read_from_binary_batches(tmp_path, planes):
    pixels, labels = planes
    np.concatenate([labels[:, None].astype(np.uint8), pixels], 1).tofile(tmp_path / "data_batch_3.bin")
    check(images.cifar10(tmp_path), pixels, labels)
    (tmp_path / "data_batch_4.bin").write_bytes(b"short")
    with pytest.raises(ValueError, match="no multiple of 3073"):
        images.cifar10(tmp_path)


def check(found: images.Images, pixels: np.ndarray, labels: np.ndarray) -> None:
    assert found.pixels.shape == (4, 3, 32, 32)
    assert found.labels.tolist() == labels.tolist()
    assert found.pixels[2, 1, 5, 7].item() == pytest.approx(pixels[2, 1024 + 5 * 32 + 7] / 255)


def test_cifar_refuses_code_and_an_empty_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="unpack CIFAR-10 there"):
        images.cifar10(tmp_path)
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({b"data": print}))
    with pytest.raises(pickle.UnpicklingError, match=r"builtins\.print"):
        images.cifar10(tmp_path)


@pytest.mark.slow
def test_quick_run_writes_its_table_and_picture(tmp_path):
    pytest.importorskip("matplotlib")
    arguments = ["--quick", "--seeds", "1", "--out", str(tmp_path)]
    records = classification.main(classification.EXPERIMENT, arguments)
    assert {r.method for r in records} == set(classification.METHODS)
    assert all(0 <= v <= 100 for r in records for v in r.figures.values())
    assert (tmp_path / "classification.png").read_bytes().startswith(b"\x89PNG")
    assert "| all attacks, 0.1 |" in (tmp_path / "classification.md").read_text()
