"""The miniature world: procedural images whose attributes are known, and benchmarks of them."""
