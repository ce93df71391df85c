"""What a training step needs on a GPU that need not be there, by that GPU's own compiler."""
