"""What stands between a caller and the ranks: takes requests to rank 0 and makes text of what comes back."""
