"""The networks here are tiny: on a shared machine, threads that wait for each other cost more than they give."""

import torch

torch.set_num_threads(1)
