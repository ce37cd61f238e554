"""Training and answering of a LLaVA here, in a plain first version of ours, and in transformers."""
