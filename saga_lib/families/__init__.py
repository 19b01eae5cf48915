"""One module per family of models: its vision tower and, for multimodal ones, its frozen supervisor."""
