"""In place of vllm, of which SGLang's layers take these operations where there is a CPU and no kernels of its own."""
