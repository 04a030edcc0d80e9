"""The `blip-fast` command. Subcommands are imported when they are called, so that `--help` is quick."""

from __future__ import annotations

import importlib

import click

COMMANDS = {
    "bench": "Run the benchmarks, compare results, and make a page of them.",
    "capfilt": "Caption and filter a noisy web set (CapFilt).",
    "caption": "Write captions for images: files, folders, patterns, lists, webdataset shards.",
    "convert": "Convert checkpoints between the published, safetensors and Hugging Face formats.",
    "data": "Make data sets to train on.",
    "demo": "Train a small BLIP on bundled pictures and write a report.",
    "doctor": "Show which backends work on this machine, and why the others do not.",
    "features": "Write features of images, texts or both to a safetensors file.",
    "match": "Tell how well texts match an image.",
    "report": "Write a page about a training run.",
    "serve": "Open a page for captions, questions and matches with heat maps.",
    "train": "Run a published program: pretrain, retrieval, caption, vqa, nlvr, nocaps, retrieval_video.",
    "train-demo": "Pre-train and fine-tune a small BLIP on 2,743 emoji, 15 minutes on 2 cores, and report.",
    "vqa": "Answer questions about an image.",
}


class LazyGroup(click.Group):
    """A group whose commands are `blip_fast.cli.<name>:command`, dashes read as underscores."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        return importlib.import_module(f"blip_fast.cli.{name.replace('-', '_')}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(sorted(COMMANDS.items()))


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="blip_fast")
def main() -> None:
    """BLIP (arXiv 2201.12086) and its training loop on fused kernels."""
