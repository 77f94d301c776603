"""The two HTML pages: what is in the data, and what the trained network is worth."""
