"""What comes out goes into the launcher's pre-training as it is."""

from __future__ import annotations

import json

import pytest

from blip_fast.capfilt import run_capfilt
from blip_fast.data.demo_pairs import demo_root
from tests.capfilt.common import demo_entries, models, settings, write_list
from tests.tasks import miniature
from tests.tasks.commands import train


@pytest.mark.parametrize("form", ["list", "shards"])
def test_the_launcher_trains_on_the_set(tmp_path, form):
    web = write_list(tmp_path / "web.json", demo_entries(5))
    human = write_list(tmp_path / "human.json", demo_entries(2))
    manifest = run_capfilt(
        settings(web, tmp_path / "set", threshold=0.0, form=form, human=(human,), human_root=demo_root()),
        models=models(),
    )
    made = {
        "list": {"train_file": [str(tmp_path / "set" / "bootstrapped.json")]},
        "shards": {"train_file": [], "shards": [str(tmp_path / "set" / "shards" / "*.tar")]},
    }
    options = miniature.overrides(tmp_path, "pretrain") | made[form] | {"max_epoch": 1}
    printed = train("pretrain", options, tmp_path / "out")
    assert f"number of training samples: {manifest['pairs']}" in printed
    (line,) = map(json.loads, (tmp_path / "out" / "log.txt").read_text().splitlines())
    assert float(line["train_loss_lm"]) > 0
    assert "skipped" not in printed
