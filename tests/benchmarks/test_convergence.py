"""The convergence run in small: a few steps, its verdict, its files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from blip_fast.benchmarks.models import convergence
from blip_fast.benchmarks.models.convergence import DISTURBED, LAST, PATHS, SEEDS, Recipe, curve_name, judge
from blip_fast.config import BlipConfig
from blip_fast.data.demo_pairs import demo_root


@pytest.fixture(scope="module")
def pairs():
    return convergence.load_pairs(demo_root(), image_size=32)


def test_pairs(pairs):
    count = len(pairs.images)
    assert pairs.images.shape == (count, 3, 32, 32)
    assert -1 <= pairs.images.min() < pairs.images.max() <= 1
    assert (pairs.ids[:, 0] == BlipConfig.cls_token_id).all()
    assert (pairs.ids == BlipConfig.sep_token_id).sum() == count
    assert pairs.ids.max() == pairs.vocabulary - 3  # [DEC] and [ENC] come last
    assert pairs.mask.sum() == (pairs.ids != 0).sum()


def test_both_paths_train_alike_without_dropout_and_nearly_so_from_disturbed_weights(pairs):
    recipe, config = Recipe(steps=3, batch=4, warmup=2), convergence.small_config(pairs.vocabulary, 0.0)
    published, ours, disturbed = (
        convergence.train(path, pairs, config, recipe, seed=0) for path in (*PATHS, DISTURBED)
    )
    assert published.shape == (3, 3)
    np.testing.assert_allclose(ours, published, rtol=1e-5)
    np.testing.assert_allclose(disturbed, published, rtol=1e-4)
    assert not np.array_equal(disturbed, published)


def curves(difference: float, final: float) -> dict[str, np.ndarray]:
    """The published path at 3, or at 2.9 and 3.1 with other seeds; ours ``difference`` and ``final`` away from it."""
    flat = np.ones((2 * LAST, 3))
    result = {curve_name(PATHS[0], 0.0, 0): flat, curve_name(PATHS[1], 0.0, 0): flat * (1 + difference)}
    result[curve_name(DISTURBED, 0.0, 0)] = flat
    for seed, shift in zip(SEEDS, (0.0, -0.1, 0.1), strict=True):
        result[curve_name(PATHS[0], 0.1, seed)] = flat + shift / 3
        result[curve_name(PATHS[1], 0.1, seed)] = flat + (shift + final) / 3
    return result


@pytest.mark.parametrize(("difference", "same"), [(5e-4, True), (2e-3, False)])
@pytest.mark.parametrize(("final", "alike"), [(0.15, True), (0.25, False)])
def test_verdict(difference, same, final, alike):
    verdict = judge(curves(difference, final), 0.1)
    assert verdict["largest_relative_difference"] == pytest.approx(difference)
    assert verdict["final_difference"] == pytest.approx(final)
    assert verdict["spread_over_seeds"] == pytest.approx(0.2)
    assert (verdict["same_without_dropout"], verdict["alike_with_dropout"]) == (same, alike)


def test_finished_curves_are_kept_and_others_trained(tmp_path, monkeypatch):
    trained = []

    def train(path, pairs, config, recipe, seed):
        trained.append(curve_name(path, config.hidden_dropout, seed))
        if len(trained) == 4:
            raise KeyboardInterrupt
        return curves(0.0, 0.0)[trained[-1]]

    monkeypatch.setattr(convergence, "train", train)
    arguments = ["--output", str(tmp_path), "--steps", str(2 * LAST)]
    assert CliRunner().invoke(convergence.main, arguments).exit_code != 0
    assert len(json.loads((tmp_path / "convergence.json").read_text())["curves"]) == 3
    result = CliRunner().invoke(convergence.main, arguments)
    assert result.exit_code == 0, result.output
    assert len(set(trained)) == 9
    assert len(trained) == 10  # the fourth twice, since it was interrupted
    document = json.loads((tmp_path / "convergence.json").read_text())
    assert document["verdict"]["same_without_dropout"]
    assert (tmp_path / "convergence.svg").read_text().count("blip_fast") >= 1
    other = CliRunner().invoke(convergence.main, [*arguments[:-1], str(LAST)])  # another recipe: nothing is kept
    assert other.exit_code == 0
    assert len(trained) == 19
