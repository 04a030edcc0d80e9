"""``from_pretrained`` and ``save_pretrained`` of every head, and loading into a model that exists."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from blip_fast.checkpoints.files import CONFIG_FILE, write_folder
from blip_fast.checkpoints.heads import HEADS, HF_CLASSES, head_of
from blip_fast.checkpoints.huggingface import check_exportable, read_hf_names, write_hf_files
from blip_fast.checkpoints.loading import LoadReport, check_complete, fit, load_state, materialise, tied_names
from blip_fast.checkpoints.published import CHECKPOINT_FILE, State, config_values, read_state, write_checkpoint
from blip_fast.checkpoints.sources import WEIGHT_FILES, Source, locate, weight_file
from blip_fast.checkpoints.tokenizers import has_tokenizer, tokenizer_for
from blip_fast.config import BlipConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Format = Literal["published", "safetensors", "hf"]
FORMATS: tuple[Format, ...] = ("published", "safetensors", "hf")
_OWN_FORMAT = {"format": "blip_fast", "format_version": 1}
Model = TypeVar("Model", bound="PretrainedModel")


@dataclass
class Checkpoint:
    """What was read: tensors under published names, fields of the configuration, and the head, where it is known.

    ``folder`` is where the tokenizer of its vocabulary lies, if there is one.
    """

    state: State
    values: dict[str, Any]
    head: str | None
    folder: Path | None = None


class PretrainedModel(nn.Module):
    """A model that comes from checkpoints and goes into them.

    Attributes:
        head: which of ``blip_fast.checkpoints.heads.HEADS`` the class is.
        load_report: what :meth:`from_pretrained` found; None in a model that was built anew.
        trained_head: the head that the checkpoint was made for, where it tells; None in a model that was built anew.
    """

    head: ClassVar[str]
    config: BlipConfig
    load_report: LoadReport | None = None
    trained_head: str | None = None

    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.config = config
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._tokenizer_folder: Path | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Tokenizer for texts given as strings: the one that was set, or BLIP's, or the one saved beside the weights.

        Raises ValueError for a model of another vocabulary than BLIP's that has none.
        """
        if self._tokenizer is None:
            self._tokenizer = tokenizer_for(self.config, self._tokenizer_folder)
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def options(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Arguments of the constructor, beside the configuration, that follow from what a checkpoint holds."""
        return {}

    @classmethod
    def from_pretrained(cls: type[Model], source: Source, **overrides: Any) -> Model:
        """A model from a checkpoint, on the CPU, in torch's default dtype and in eval mode.

        Args:
            source: a published ``.pth`` or its name ("model_base_capfilt_large"), an address, a folder written by
                :meth:`save_pretrained`, or a Hugging Face folder or id ("Salesforce/blip-vqa-base").
            overrides: fields of :class:`BlipConfig` that shall differ from the checkpoint's, such as ``image_size``
                (position embeddings are then interpolated, as published).

        Raises FileNotFoundError where nothing is found, ValueError where it is no BLIP model or not this head's.
        """
        checkpoint = read_checkpoint(source, cls.head)
        config = BlipConfig.from_dict(checkpoint.values | overrides)
        options = cls.options(checkpoint.state)
        with torch.device("meta"):
            model = cls(config, **options)
        matching, report = fit(model, checkpoint.state)
        check_complete(report, cls.head, checkpoint.state, source)
        if report.initial:
            model = cls(config, **options)
        else:  # every tensor is overwritten: initial values, which take longer than the loading, are not computed
            materialise(model)
        model.load_state_dict(matching, strict=False)
        model.load_report, model.trained_head = report, checkpoint.head
        model._tokenizer_folder = checkpoint.folder
        return model.eval()

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        format: Format = "safetensors",
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        """Write the model so that :meth:`from_pretrained` reads it.

        Args:
            folder: where to; it is made if needed. With "published" also the name of a file that ends in ``.pth``.
            format: "published" is ``checkpoint.pth`` with {model, config}, which the published code loads;
                "safetensors" is ``model.safetensors`` and ``config.json``; "hf" is a folder for transformers.
            tokenizer: stored too in a folder of the last two kinds; None stores the model's own. BLIP's is stored only
                in "hf", because transformers' processor needs one.

        At no moment is there a folder or file that looks complete and is not. Raises ValueError where transformers has
        no class for this head.
        """
        if format not in FORMATS:
            raise ValueError(f"format={format!r}; expected one of {', '.join(map(repr, FORMATS))}")
        if format == "published":
            write_checkpoint(_checkpoint_path(Path(folder)), self, self.config)
        elif format == "hf":
            check_exportable(self.config, self.head)
            kept = tokenizer or self._kept_tokenizer(with_blips=True)
            write_folder(folder, lambda part: write_hf_files(part, self, self.config, self.head, kept))
        else:
            kept = tokenizer or self._kept_tokenizer(with_blips=False)
            write_folder(folder, lambda part: _write_own_files(part, self, kept))

    def _kept_tokenizer(self, with_blips: bool) -> PreTrainedTokenizerBase | None:
        """The model's tokenizer, if it has one; BLIP's own on request."""
        if self.config.vocab_size == BlipConfig.vocab_size:
            return self.tokenizer if with_blips else None
        has_one = self._tokenizer is not None or self._tokenizer_folder is not None
        return self.tokenizer if has_one else None


def load_checkpoint(model: PretrainedModel, source: Source) -> LoadReport:
    """Load a checkpoint into a model that exists, as the published programs do before fine-tuning.

    The model keeps its configuration: position embeddings are interpolated, tensors of other shapes left out. The
    source and the errors are those of :meth:`PretrainedModel.from_pretrained`.
    """
    state = read_checkpoint(source, model.head).state
    check_complete(fit(model, state)[1], model.head, state, source)
    return load_state(model, state)


def read_checkpoint(source: Source, head: str | None = None) -> Checkpoint:
    """Read any kind of checkpoint; ``head`` is the one that is wanted, if that is known."""
    path = locate(source)
    if path.is_dir() and (path / CONFIG_FILE).is_file():
        checkpoint = _read_folder(path)
        checkpoint.folder = path if has_tokenizer(path) else None
        return checkpoint
    if path.is_dir():
        path = _only_checkpoint(path)
    state, settings = read_state(path)
    try:
        values = config_values(state, settings, head)
    except KeyError as error:
        raise ValueError(f"{path} holds an incomplete BLIP model: {error} is missing") from error
    except ValueError as error:
        raise ValueError(f"{path} holds {error}") from error
    return Checkpoint(state, values, head_of(state))


def _read_folder(folder: Path) -> Checkpoint:
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG_FILE} is no JSON") from error
    kind = (config.get("format"), config.get("model_type")) if isinstance(config, Mapping) else (None, None)
    if kind[0] == _OWN_FORMAT["format"]:
        return _read_own_files(folder, config)
    if kind[1] != "blip":
        raise ValueError(f"{folder / CONFIG_FILE} has model_type={kind[1]!r}; expected 'blip'")
    state = read_hf_names(read_state(weight_file(folder))[0])
    architectures = config.get("architectures") or [None]
    return Checkpoint(state, BlipConfig.from_hf(config).to_dict(), HF_CLASSES.get(architectures[0], head_of(state)))


def _read_own_files(folder: Path, config: Mapping[str, Any]) -> Checkpoint:
    version, expected = config.get("format_version"), _OWN_FORMAT["format_version"]
    if version != expected or config.get("head") not in HEADS or not isinstance(config.get("config"), Mapping):
        raise ValueError(f"{folder / CONFIG_FILE} has format_version={version!r} and head={config.get('head')!r}; "
                         f"expected {expected}, one of {', '.join(HEADS)}, and a 'config'")  # fmt: skip
    state = read_state(weight_file(folder))[0]
    # Another head may know a tied tensor only by the name under which it is not stored.
    ties = config.get("ties", {})
    state |= {alias: state[name] for alias, name in ties.items() if name in state}
    return Checkpoint(state, dict(config["config"]), config["head"])


def _only_checkpoint(folder: Path) -> Path:
    """The one ``.pth`` in a folder without configuration."""
    found = sorted(folder.glob("*.pth"))
    if len(found) != 1:
        raise FileNotFoundError(f"{folder} has no {CONFIG_FILE} and {len(found)} .pth files; expected the former (it "
                                "is missing where writing was interrupted) or one of the latter")  # fmt: skip
    return found[0]


def _checkpoint_path(target: Path) -> Path:
    if target.suffix == ".pth":
        return target
    if (target / CONFIG_FILE).exists():
        raise ValueError(f"folder={str(target)!r} holds a model of another format, which would be loaded in place of "
                         "the published one; expected another folder")  # fmt: skip
    others = [path.name for path in target.glob("*.pth") if path.name != CHECKPOINT_FILE]
    if others:
        raise ValueError(f"folder={str(target)!r} holds {others[0]}, another model; expected another folder, or the name "
                         "of a file")  # fmt: skip
    return target / CHECKPOINT_FILE


def _write_own_files(folder: Path, model: PretrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> None:
    ties = tied_names(model)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name not in ties}
    save_file(state, folder / WEIGHT_FILES[0], metadata={"format": "pt"})
    content = _OWN_FORMAT | dict(head=HEADS[model.head].name, config=model.config.to_dict(), ties=ties)
    (folder / CONFIG_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
