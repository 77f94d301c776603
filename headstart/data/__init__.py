"""From a data source to pixels: where images lie, which they are, what is wrong with them, how they are split."""
