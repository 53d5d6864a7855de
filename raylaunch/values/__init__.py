"""What a value must be by itself, told without pydantic or Ray."""
