"""How the miniature supervisors come to be: pre-training, prompt tuning, half-taught ones."""
