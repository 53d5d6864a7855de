"""``raylaunch bench sweep``: a grid of settings, each cell launched and measured in a process of its own."""
