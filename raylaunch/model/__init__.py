"""What is known of a model before it is loaded: its folder, its shape, its tokenizer."""
