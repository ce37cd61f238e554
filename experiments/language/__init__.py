"""Are experts trained apart, with a gate, as good as one model trained on all?"""
