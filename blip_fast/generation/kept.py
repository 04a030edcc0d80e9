"""Sessions that outlive a call: what a CUDA graph costs to capture is paid once for calls of equal shapes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from blip_fast.generation.static import StaticSession
from blip_fast.ops.registry import OPERATIONS
from blip_fast.reference.decoder import TextDecoder

_ATTRIBUTE = "kept_sessions"  # of a decoder


class KeptSessions:
    """The session last used, under the key of what it was made for. A copy of a decoder, or one from a file, has none."""

    def __init__(self) -> None:
        self._sessions: dict[Any, StaticSession] = {}

    def take(self, key: Any) -> StaticSession | None:
        """The session of this key, which nobody else gets until it is put back; another one is let go, for its memory."""
        sessions, self._sessions = self._sessions, {}
        return sessions.get(key)

    def put(self, key: Any, session: StaticSession) -> None:
        """Keep this session in place of all others."""
        self._sessions = {key: session}

    def __deepcopy__(self, memo: dict[int, Any]) -> KeptSessions:
        return KeptSessions()

    def __reduce__(self) -> tuple[type[KeptSessions], tuple[()]]:
        return KeptSessions, ()


def forget_sessions(model: nn.Module) -> None:
    """Free what the decoders of this model have kept: memory that training can use."""
    for module in model.modules():
        module.__dict__.pop(_ATTRIBUTE, None)


@contextlib.contextmanager
def kept_session(
    kind: type[StaticSession], decoder: TextDecoder, states: Tensor, copies: int, max_length: int
) -> Iterator[StaticSession]:
    """A session for these states: the last one of this decoder if shapes, dtype, backends and weights are the same."""
    addresses = tuple(parameter.data_ptr() for parameter in decoder.parameters())
    backends = tuple(OPERATIONS[name].select([states]) for name in ("cross_attention", "linear"))
    key = (kind, states.shape, states.dtype, states.device, copies, max_length, backends, addresses)
    kept = decoder.__dict__.setdefault(_ATTRIBUTE, KeptSessions())
    session = kept.take(key)
    if session is None:
        session = kind(decoder, states, copies, max_length)
    else:
        session.restart(states)
    yield session
    kept.put(key, session)
