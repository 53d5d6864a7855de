"""Graph capture and replay: the split at attention, the pieces, and what records them."""
