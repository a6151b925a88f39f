"""What is measured inside a model beyond its answers: routes, contributions of tokens, linear probes."""
