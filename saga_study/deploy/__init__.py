"""Uses of a trained encoder: search a folder of images, export to other runtimes."""
