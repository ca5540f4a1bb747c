"""Small language models: transformers-style families, the standard library as data, text evaluation."""
