"""What ``SGLANG_EXTERNAL_MODEL_PACKAGE`` names: SGLang's own module of one model. Since 0.5.23 all others, which take
seconds to import, are imported only where this one has not what is asked for."""
