"""Settings shared by all tests: hypothesis draws the same examples every time, and torch keeps to two threads."""

import torch
from hypothesis import settings

settings.register_profile("subbyte", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("subbyte")
torch.set_num_threads(2)
