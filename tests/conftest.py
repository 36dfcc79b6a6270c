"""What all tests share."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)  # tensors here are small: a second thread costs more than it gives
