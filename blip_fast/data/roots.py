"""Folders that pictures and videos are taken from: paths in annotation files come from strangers."""

from __future__ import annotations

import os
from pathlib import Path


class Root:
    """A folder; what is named in annotation files must lie below it.

    Absolute paths are fine where they lie below the folder: published pre-training lists hold full paths and go with
    the root "/", which allows any file and is never assumed.
    """

    def __init__(self, folder: str | os.PathLike[str], name: str = "image_root") -> None:
        self.path = Path(folder).resolve()
        self.name = name
        if not self.path.is_dir():
            raise FileNotFoundError(f"{name}={str(folder)!r} is not a folder")

    def __str__(self) -> str:
        return f"{self.name}={self.path}"

    def covers(self, path: str) -> bool:
        """Whether ``path`` (relative to the folder, or absolute) stays below it, judged by its text alone.

        Touching millions of files while annotations are read would take minutes; links are followed by :meth:`file`.
        """
        return "\0" not in path and self._is_below(os.path.normpath(os.path.join(self.path, path)))

    def file(self, path: str) -> str:
        """Absolute path of a file below the folder, links followed.

        Raises ValueError where a link leads out of the folder.
        """
        real = os.path.realpath(os.path.join(self.path, path))
        if not self._is_below(real):
            raise ValueError(f"{path!r} is a link that leads out of {self}, to {real}")
        return real

    def _is_below(self, path: str) -> bool:
        return os.path.commonpath([path, self.path]) == str(self.path)
