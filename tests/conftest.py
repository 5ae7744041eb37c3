"""Settings of all tests."""

import torch
from hypothesis import settings

# Small operations are far slower where several processes' threads share the cores.
torch.set_num_threads(1)
# How long an example takes says more about the machine than about the code.
settings.register_profile("isthmus", deadline=None)
settings.load_profile("isthmus")
