"""What runs show: numbers as text, samples, differences, tables, sentences, figures, the report."""
