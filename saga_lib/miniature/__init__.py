"""The shipped miniature supervisors, in `checkpoints`: small models of the real architectures."""
