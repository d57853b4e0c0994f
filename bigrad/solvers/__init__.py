"""How the forward pass is computed: one algorithm a file, the contract in base.py."""
