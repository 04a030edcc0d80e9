"""Pre-training pairs in webdataset shards: tar files of pictures with a text each, on local disks.

Shards are indexed, so that any sample can be read at any time. Order, batches and resuming are then those of `EpochSampler`:
a shuffle over all samples, dealt evenly to ranks, to be continued at any batch with any number of workers. Streams of whole
shards can do none of this; they are for storage that only reads well from start to end.
"""

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import braceexpand
import numpy as np

from blip_fast.data.bad_samples import BadSamples
from blip_fast.data.pictures import BrokenSampleError, decode_picture
from blip_fast.data.pretrain import PairSample, collate_pairs
from blip_fast.data.samples import OnBroken, SampleData, Transform
from blip_fast.data.shard_samples import caption_of
from blip_fast.data.tar_index import TarIndex, tar_index
from blip_fast.data.text import pre_caption
from blip_fast.data.tokens import TextEncoder
from blip_fast.data.transforms import PictureTransform

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def shard_files(patterns: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The files that names, braces ("web-{000..127}.tar") and wildcards stand for, in order.

    Raises FileNotFoundError for one that stands for nothing.
    """
    files: list[Path] = []
    names = (name for pattern in patterns for name in braceexpand.braceexpand(os.fspath(pattern)))
    for name in names:
        found = [name] if os.path.exists(name) else sorted(glob.glob(name))
        if not found:
            raise FileNotFoundError(f"shards={name!r} stands for no file")
        files += [Path(file) for file in found]
    return files


@dataclasses.dataclass(frozen=True)
class ShardRecord:
    """Where one sample lies: shard, its name there, and (first byte, size) of picture and text."""

    shard: Path
    key: str
    picture: tuple[int, int]
    text: tuple[int, int]
    is_json: bool

    def __str__(self) -> str:
        return f"{self.shard}, {self.key}"


class ShardRecords(Sequence[ShardRecord]):
    """Records of all samples of the shards, from their indices."""

    def __init__(self, shards: Sequence[Path], indices: Sequence[TarIndex]) -> None:
        self.shards, self.indices = list(shards), list(indices)
        self._ends = np.cumsum([len(index) for index in indices], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> ShardRecord:  # type: ignore[override]
        number = range(len(self))[index]
        place = int(np.searchsorted(self._ends, number, side="right"))
        shard = self.indices[place]
        row = number - int(self._ends[place]) + len(shard)
        begin, size, text_begin, text_size = shard.places[row].tolist()
        key = str(shard.keys[row])
        return ShardRecord(self.shards[place], key, (begin, size), (text_begin, text_size), bool(shard.is_json[row]))


class ShardData(SampleData[PairSample, ShardRecord]):
    """Pairs of webdataset shards: a picture (jpg, png, webp ...) with a text (txt, or json with "caption") each.

    Samples and batches are those of `PretrainData`, and so are the arguments.

    Args:
        shards: tar files, as names, braces or wildcards; not compressed.
        bad: where samples without a picture or text and damaged shards are counted; None: the first one raises.
    """

    def __init__(
        self,
        shards: Sequence[str | os.PathLike[str]],
        transform: Transform,
        *,
        max_words: int = 30,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_tokens: int | None = None,
        bad: BadSamples | None = None,
        on_broken: OnBroken = "replace",
    ) -> None:
        super().__init__(on_broken)
        self.transform = transform
        self.max_words = max_words
        self.encoder = TextEncoder("pretrain", tokenizer, max_tokens)
        files = shard_files(shards)
        indices = [tar_index(file) for file in files]
        (BadSamples() if bad is None else bad).add(line for index in indices for line in index.problems)
        self.records = ShardRecords(files, indices)
        if not len(self):
            raise ValueError(f"shards={[str(shard) for shard in shards]} hold no samples")

    collate = staticmethod(collate_pairs)

    def make_sample(self, index: int, broken: list[str]) -> PairSample:
        record = self.records[index]
        try:
            with record.shard.open("rb") as file:
                picture, text = _read(file.fileno(), record.picture), _read(file.fileno(), record.text)
        except OSError as error:
            raise BrokenSampleError(f"{record}: {error}") from error
        caption = caption_of(text, record.is_json)
        if caption is None:
            raise BrokenSampleError(f"{record}: its JSON holds no 'caption'")
        if isinstance(self.transform, PictureTransform):
            image = self.transform.finish(decode_picture(picture, str(record), self.transform.decode))
        else:
            image = self.transform(decode_picture(picture, str(record)))
        caption = pre_caption(caption, self.max_words)
        return PairSample(image, caption, self.encoder(caption), index)


def _read(descriptor: int, place: tuple[int, int]) -> bytes:
    begin, size = place
    data = os.pread(descriptor, size, begin)
    if len(data) < size:
        raise OSError(f"the shard ends after {len(data)} of {size} bytes")
    return data
