"""Networks as nested minimisations: finite targets, and rules that contrast two states. After Zach, arXiv 2105.07231."""
