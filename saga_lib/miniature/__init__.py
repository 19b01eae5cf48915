"""The miniature world: procedural fine-grained images with known attributes and a small supervisor for them."""
