"""The frozen backbone over images: the engines, the store of what they computed, augmented views."""
