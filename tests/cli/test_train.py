"""The command line of the launcher: flags, errors, --dry-run, and the page about a run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from PIL import Image

from blip_fast.cli import main, report, train
from blip_fast.data.demo_pairs import demo_root
from blip_fast.tasks.programs import PROGRAMS
from tests.models.common import SIZES

MODEL = {name: value for name, value in SIZES.items() if name not in ("image_size", "queue_size", "vocab_size")}
SETTINGS = dict(
    train_file=[str(demo_root() / "train.json")], image_root=str(demo_root()), image_size=16, queue_size=16, batch_size=8,
    max_steps=3, workers=0, init_vit="", init_bert="", log_every=1, model=MODEL | {"vocab_size": 30524},
)  # fmt: skip


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "own.yaml"
    path.write_text(yaml.safe_dump(SETTINGS))
    return path


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(train.command, ["pretrain", *map(str, arguments)])


@pytest.fixture(scope="module")
def output(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run with all published flags."""
    folder = tmp_path_factory.mktemp("runs") / "new" / "<b>run</b>"
    flags = ("--device", "cpu", "--seed", 5, "--world_size", 1, "--dist_url", "env://", "--distributed", "False")
    result = invoke("--config", config, "--output_dir", folder, "--checkpoint", "", "--evaluate", *flags)
    assert result.exit_code == 0, result.output
    assert "pretrain has nothing to evaluate" in result.output
    assert "Train Epoch: [0]  [ 2/22]" in result.output
    return folder


def test_a_run_leaves_the_published_files_and_ours(output: Path) -> None:
    names = {path.name for path in output.iterdir()}
    assert names >= {"config.yaml", "log.txt", "checkpoint_00.pth", "resume.pth", "history.jsonl", "environment.json"}
    settings = yaml.safe_load((output / "config.yaml").read_text())
    assert (settings["batch_size"], settings["warmup_steps"]) == (8, 3000)
    assert json.loads((output / "log.txt").read_text())["epoch"] == 0
    assert json.loads((output / "environment.json").read_text())["seed"] == "5"
    assert any(path.name.startswith("events.out") for path in (output / "tensorboard").iterdir())
    config = torch.load(output / "checkpoint_00.pth", weights_only=True)["config"]
    assert (config["queue_size"], config["vit_heads"]) == (16, 2)


def test_the_page_stands_alone_and_escapes(output: Path) -> None:
    damaged = output / "damaged.png"  # PIL calls this a SyntaxError
    Image.effect_noise((400, 400), 100).save(damaged)
    head, *rest = damaged.read_bytes().split(b"IDAT")
    damaged.write_bytes(b"IDAT".join([head, rest[0] + b"\0DAT" + rest[1], *rest[2:]]))
    pictures = [str(next(demo_root().rglob("*.png"))), str(demo_root() / "train.json"), "/absent.png", str(damaged)]
    samples = [{"picture": picture, "generated": "a <script>alert(1)</script>"} for picture in pictures]
    (output / "samples.json").write_text(json.dumps(samples))
    result = CliRunner().invoke(report.command, [str(output)])
    assert result.exit_code == 0, result.output
    page = (output / "report.html").read_text()
    assert page.count("<svg") == 6  # learning rate, three losses, images/s, MFU
    assert page.count("data:image/png;base64,") == 1
    assert "&lt;script&gt;" in page
    assert "<b>run</b>" not in page
    assert not re.search(r"<script|<link|@import|url\((?!#)|src=\"(?!data:)", page)
    for part in ("Settings", "warmup_steps", "Environment", torch.__version__, "train_loss_itm"):
        assert part in page


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    result = CliRunner().invoke(report.command, [str(tmp_path)])
    assert result.exit_code == 1
    assert "has no config.yaml" in result.output


def test_a_dry_run_tells_sizes_and_writes_nothing(config: Path, tmp_path: Path) -> None:
    result = invoke("--config", config, "--output_dir", tmp_path / "out", "--dry-run", "--set", "accumulate=2")
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "out").exists()
    for pattern in (
        r"found    .*train\.json",
        r"accumulate: 2",
        r"model        2\.\d M parameters",
        r"data         182 samples, 16 a step, 11 steps an epoch, 20 epochs",
        r"FLOPs        0\.\d+ T a step, 0\.\d G a sample",
        r"memory       0\.\d\d GiB: weights .*, gradients .*, optimizer .*, activations",
    ):
        assert re.search(pattern, result.output), pattern


def test_a_dry_run_counts_activation_checkpointing(config: Path) -> None:
    sizes = ["--set", "image_size=256", "--set", "batch_size=32", "--set", "vit_ckpt_layer=2"]
    activations = []
    for wanted in ("False", "True"):
        result = invoke("--config", config, "--dry-run", *sizes, "--set", f"vit_grad_ckpt={wanted}")
        found = re.search(r"activations (\d\.\d\d) GiB", result.output)
        assert found is not None, result.output
        activations.append(float(found[1]))
    assert activations[1] < 0.7 * activations[0]


def test_a_dry_run_names_missing_files(config: Path) -> None:
    result = invoke("--config", config, "--dry-run", "--set", "train_file=[absent.json]")
    assert result.exit_code == 1
    assert "MISSING  absent.json" in result.output


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--set", "bach_size=3"], 1, "unknown key 'bach_size'; did you mean 'batch_size'?"),
        (["--config", "absent.yaml"], 1, "config='absent.yaml' is no file"),
        (["--checkpoint", "absent.pth"], 1, "there is no 'absent.pth'"),
        (["--resume", "absent.pth"], 1, "there is no checkpoint 'absent.pth'"),
        (["--device", "nonsense"], 1, "device='nonsense' cannot be used here"),
        (["--seed", "-1"], 2, "--seed"),
        (["--distributed", "perhaps"], 2, "--distributed"),
        (["--set", "batch_size=500"], 1, "more than the 182 samples"),
    ],
)
def test_bad_arguments_get_one_sentence(
    config: Path, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    given = ["--config", str(config)] if "--config" not in arguments else []
    result = invoke(*given, "--output_dir", tmp_path, "--device", "cpu", *arguments)
    assert result.exit_code == code, result.output
    assert message in result.output
    assert "Traceback" not in result.output


def test_every_program_is_known_with_its_published_file() -> None:
    assert tuple(PROGRAMS) == train.PROGRAM_NAMES
    for name, program in PROGRAMS.items():
        task_class = program.task_class()
        assert task_class.name == name
        result = CliRunner().invoke(train.command, [name, "--dry-run"])
        assert result.exit_code == 1
        assert "MISSING" in result.output
    assert "train" in CliRunner().invoke(main, ["--help"]).output
