"""The rank's side of raylaunch: what runs in each process of a tensor-parallel group."""
