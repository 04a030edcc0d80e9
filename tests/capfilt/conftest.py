"""Models this small are fastest in one thread."""

import torch

torch.set_num_threads(1)
