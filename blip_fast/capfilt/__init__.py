"""CapFilt (BLIP, section 3.3): a captioner and a filter make a clean set of pairs from web pictures with noisy texts."""

from __future__ import annotations

from blip_fast.capfilt.runner import run_capfilt
from blip_fast.capfilt.settings import CapFiltSettings, ScoreSettings, SelectSettings

__all__ = ["CapFiltSettings", "ScoreSettings", "SelectSettings", "run_capfilt"]
