"""Text generation: static caches, greedy search, beam search, sampling, scores.

It works on a text decoder and the states that the decoder looks at; what these are (an image, a question) is the models'
business. The models import this package, never the other way round.
"""

from __future__ import annotations

from blip_fast.generation.decode import generate
from blip_fast.generation.int8 import to_int8
from blip_fast.generation.options import OptionArguments, Options
from blip_fast.generation.prompts import Prompts, prompts_of
from blip_fast.generation.scores import Generated, GeneratedIds
from blip_fast.generation.session import DecodingSession

__all__ = [
    "DecodingSession",
    "Generated",
    "GeneratedIds",
    "OptionArguments",
    "Options",
    "Prompts",
    "generate",
    "prompts_of",
    "to_int8",
]
