"""New images: where they come from, and how the answers are written and served."""
