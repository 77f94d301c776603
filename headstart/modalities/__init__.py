"""What an example is: bytes to arrays, augmentation, what a copy is, how it looks on a page."""
