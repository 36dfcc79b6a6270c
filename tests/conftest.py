"""What all tests share."""

import torch
from hypothesis import settings

torch.set_num_threads(1)  # tensors here are small: a second thread costs more than it gives

settings.register_profile("shared", deadline=None, max_examples=50)  # machines are shared: times say nothing
settings.load_profile("shared")
