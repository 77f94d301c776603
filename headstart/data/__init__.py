"""The data source and what prepare decides about it: listing, inspection, near copies, splits."""
