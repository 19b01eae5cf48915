"""Your own images: checked, judged ready or not, their attributes discovered."""
