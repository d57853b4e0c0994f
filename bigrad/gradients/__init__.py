"""How the backward pass is computed: one rule a file, and the autograd function that they share in base.py."""
