"""Headstart: transfer learning that can be reproduced, from labelled examples to an evaluated classifier."""

__version__ = "0.2.0"
