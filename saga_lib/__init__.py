"""SAGA: semantic attribute gradients from a frozen multimodal language model for visual embeddings."""

__version__ = "0.1.0"
