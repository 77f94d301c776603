"""Networks and how they are trained: trunk, head, blocks, calibration, fine-tuning, and which is better."""
