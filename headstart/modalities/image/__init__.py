"""Images: decoding, resizing, augmented views, descriptors."""
