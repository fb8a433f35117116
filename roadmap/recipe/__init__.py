"""How a net is trained: the optimizer, the learning rate at every step, mixing of images."""
