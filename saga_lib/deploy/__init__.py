"""What is done with a trained encoder: search a folder of images, export to other runtimes."""
