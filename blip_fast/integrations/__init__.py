"""Models of other libraries, and scripts written for the published code, on the operations of this one."""

from blip_fast.integrations.huggingface import speed_up
from blip_fast.integrations.published import patch_published

__all__ = ["patch_published", "speed_up"]
