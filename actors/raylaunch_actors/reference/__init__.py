"""The reference engine: a compact tensor-parallel engine on plain PyTorch and Hugging Face models."""
