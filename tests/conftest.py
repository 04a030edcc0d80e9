"""Models this small are fastest in one thread, tests run side by side, and the golden numbers were computed in one."""

import torch

torch.set_num_threads(1)
