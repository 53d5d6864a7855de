"""What the commands share: options, what they print, their exit codes, the engine of one command."""
