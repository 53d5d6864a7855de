"""The commands of the command line, one a file. What they need of Ray or torch is imported when they run."""
