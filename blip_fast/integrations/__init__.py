"""Models of other libraries on the operations of this one."""

from blip_fast.integrations.huggingface import speed_up

__all__ = ["speed_up"]
