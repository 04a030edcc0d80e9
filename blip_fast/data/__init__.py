"""Data: datasets, transforms, tokenizer, and the bundled drawings with captions."""
