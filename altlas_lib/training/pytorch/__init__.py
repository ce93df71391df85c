"""PyTorch modules: memory of a step on a GPU that need not be there; exact training, also on several devices by torchrun."""
