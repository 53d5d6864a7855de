"""The driver's side of the engine ``sglang``: its arguments, sockets, tokenizer, detokenizer and server."""
