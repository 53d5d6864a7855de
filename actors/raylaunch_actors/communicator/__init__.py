"""Communication between the ranks of one tensor-parallel group."""
