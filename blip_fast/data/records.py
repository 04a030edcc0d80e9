"""Millions of small records without millions of Python objects."""

from __future__ import annotations

import dataclasses
import marshal
from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, TypeVar, overload

import numpy as np

Record = TypeVar("Record")


class PackedRecords(Sequence[Record], Generic[Record]):
    """Records of one frozen dataclass whose fields are numbers, strings and tuples of them, as bytes in one array.

    A list of objects would be copied into every worker process bit by bit, as reading an object counts its references;
    bytes are shared for good and take about a third of the memory.
    """

    def __init__(self, record_class: type[Record], records: Iterable[Record] = ()) -> None:
        self.record_class = record_class
        names = [field.name for field in dataclasses.fields(record_class)]  # type: ignore[arg-type]
        data, ends = bytearray(), [0]
        for record in records:
            data += marshal.dumps(tuple(getattr(record, name) for name in names))
            ends.append(len(data))
        self._data = np.frombuffer(bytes(data), dtype=np.uint8)
        self._ends = np.asarray(ends, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]  # IndexError and negative numbers as for a list
        start, end = self._ends[number], self._ends[number + 1]
        # marshal reads only what this object wrote, never a file
        return self.record_class(*marshal.loads(self._data[start:end].data))

    def __iter__(self) -> Iterator[Record]:
        return (self[number] for number in range(len(self)))
