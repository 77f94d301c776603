"""Makes the weights of the backbone `tiny` from images drawn by formula; see README.md."""
