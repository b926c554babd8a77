"""The target of a pixel that counts for nothing: not in losses, not in accuracies."""

from torch import nn

IGNORE: int = nn.CrossEntropyLoss().ignore_index  # PyTorch's losses pass over it by default
