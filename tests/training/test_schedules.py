"""Schedules against numbers recorded from the published implementation."""

from __future__ import annotations

import pytest

from blip_fast.training.schedules import alpha_ramp, cosine_decay, linear_warmup, pretrain_lr, step_decay

COSINE = [1e-05, 9.045084971874738e-06, 6.545084971874738e-06, 3.4549150281252635e-06, 9.549150281252633e-07, 0.0]
WARMUP = {
    0: 1e-06,
    1: 1.0996666666666666e-06,
    10: 1.9966666666666665e-06,
    1500: 0.00015049999999999997,
    2999: 0.0002999003333333333,
    3000: 0.0003,
    4000: 0.0003,
}
STEP = {0: 0.0003, 1: 0.00027, 2: 0.000243, 5: 0.000177147, 19: 4.052555153018978e-05, 60: 1e-06}
ALPHA = {
    (0, 0): 0.0,
    (0, 3): 0.08571428571428572,
    (0, 6): 0.17142857142857143,
    (1, 0): 0.2,
    (1, 3): 0.28571428571428575,
    (1, 6): 0.37142857142857144,
    (2, 0): 0.4,
    (2, 3): 0.4,
    (2, 6): 0.4,
}
PUBLISHED = {"init_lr": 3e-4, "min_lr": 1e-6, "warmup_lr": 1e-6, "decay_rate": 0.9, "warmup_steps": 3000}


@pytest.mark.parametrize(("epoch", "expected"), list(enumerate(COSINE)))
def test_cosine(epoch: int, expected: float) -> None:
    assert cosine_decay(epoch, 5, 1e-5, 0) == pytest.approx(expected, rel=1e-12, abs=1e-20)


@pytest.mark.parametrize(("step", "expected"), list(WARMUP.items()))
def test_warmup(step: int, expected: float) -> None:
    assert linear_warmup(step, 3000, 1e-6, 3e-4) == pytest.approx(expected, rel=1e-12)


def test_warmup_of_no_steps_is_over_at_once() -> None:
    assert linear_warmup(0, 0, 1e-6, 3e-4) == 1e-6
    assert linear_warmup(1, 0, 1e-6, 3e-4) == 3e-4


@pytest.mark.parametrize(("epoch", "expected"), list(STEP.items()))
def test_step_decay(epoch: int, expected: float) -> None:
    assert step_decay(epoch, 3e-4, 1e-6, 0.9) == pytest.approx(expected, rel=1e-12)


def test_pretraining_warms_up_in_the_first_epoch_and_decays_afterwards() -> None:
    assert pretrain_lr(0, 1500, **PUBLISHED) == pytest.approx(WARMUP[1500], rel=1e-12)
    assert pretrain_lr(0, 4000, **PUBLISHED) == 3e-4
    assert pretrain_lr(2, 1500, **PUBLISHED) == pytest.approx(STEP[2], rel=1e-12)


@pytest.mark.parametrize(("place", "expected"), list(ALPHA.items()))
def test_alpha_ramp(place: tuple[int, int], expected: float) -> None:
    assert alpha_ramp(*place, steps_per_epoch=7, alpha=0.4) == pytest.approx(expected, rel=1e-12)
