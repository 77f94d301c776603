"""How good a model is, with intervals, and whether another one is better."""
