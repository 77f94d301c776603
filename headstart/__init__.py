"""Headstart: transfer learning that can be reproduced, from labelled examples to an evaluated classifier."""
