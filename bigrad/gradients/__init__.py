"""How the backward pass is computed: one rule a file, and the package's only autograd function in base.py."""
