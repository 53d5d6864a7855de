"""The engine ``sglang``: SGLang's own scheduler in each rank, stopped at the gates of a launch."""
